"""The real digits."""

import numpy as np
import torch

from training import digits_data


def test_split_is_fixed_stratified_and_disjoint() -> None:
    """1257 digits to train on and 540 held out, classes in proportion, none on both sides."""
    data, again = digits_data.load(16), digits_data.load(16)
    assert (1257, 540) == (len(data.train.pixels), len(data.held_out.pixels))
    assert torch.equal(data.held_out.pixels, again.held_out.pixels)
    shares = [part.class_ids.bincount() / len(part.class_ids) for part in data]
    assert 0.002 > (shares[0] - shares[1]).abs().max()
    train = {image.numpy().tobytes() for image in data.train.pixels}
    assert not any(image.numpy().tobytes() in train for image in data.held_out.pixels)


def test_pixels_are_grey_and_span_the_range() -> None:
    """Images are float32 in [-1, 1] with three equal channels, paper at -1."""
    pixels = digits_data.load(32).held_out.pixels
    assert (torch.float32, (540, 3, 32, 32)) == (pixels.dtype, tuple(pixels.shape))
    assert (-1.0, 1.0) == (pixels.min().item(), pixels.max().item())
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert (pixels[:, :, :2] == -1).all()


def test_enlarging_keeps_where_the_ink_is() -> None:
    """A full square of the scan is full in the image, an empty one is empty, edges are smooth."""
    ink = np.zeros((8, 8), np.float32)
    ink[2:5, 3:6] = 1
    image = digits_data.enlarge(ink, 60)  # 6 pixels a cell, one cell of margin
    assert 1.0 == image[25, 31]
    assert 0.0 == image[50, 10]
    assert 4 < len(np.unique(image))
