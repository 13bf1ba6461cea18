"""Real handwritten digits: scikit-learn's 1797 scans of 8×8, drawn large enough to look at.

Read by the digits recipe and by its evaluation. The scans come with scikit-learn (UCI "Optical
Recognition of Handwritten Digits", Alpaydin and Kaynak, 1998), so nothing is downloaded. They are
framed, enlarged smoothly and given clean edges; that changes how a digit looks, not which it is.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT_SHARE = 0.3
SPLIT_SEED = 0

MARGIN = 1  # cells of the 8×8 scan
# Ink below the first value is paper, above the second it is full: the blur of scaling goes away.
PAPER, INK = 0.3, 0.95


class LabelledImages(NamedTuple):
    """Pixels with what they show."""

    pixels: Tensor  # (N, 3, size, size) float32 in [-1, 1], the three channels equal
    class_ids: Tensor  # (N,) int64


class DigitsData(NamedTuple):
    """A fixed, stratified split: no digit stands on both sides."""

    train: LabelledImages
    held_out: LabelledImages


def load(image_size: int) -> DigitsData:
    """Return the digits at `image_size` pixels a side."""
    scans = load_digits()
    ink = scans.images.astype(np.float32) / 16
    indices = np.arange(len(ink))
    train, held_out = train_test_split(
        indices, test_size=HELD_OUT_SHARE, random_state=SPLIT_SEED, stratify=scans.target
    )

    def part(chosen: NDArray[np.int64]) -> LabelledImages:
        images = np.stack([enlarge(ink[i], image_size) for i in sorted(chosen)])
        pixels = torch.from_numpy(images * 2 - 1)[:, None].repeat(1, 3, 1, 1)
        return LabelledImages(pixels, torch.from_numpy(scans.target[sorted(chosen)]).long())

    return DigitsData(part(train), part(held_out))


def enlarge(ink: NDArray[np.float32], image_size: int) -> NDArray[np.float32]:
    """Frame and enlarge one scan, (8, 8) in [0, 1] → (image_size, image_size) in [0, 1]."""
    framed = Image.fromarray(np.pad(ink, MARGIN))
    smooth = np.asarray(framed.resize((image_size, image_size), Image.Resampling.LANCZOS))
    t = np.clip((smooth - PAPER) / (INK - PAPER), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)
