"""The decoder: patches, positions, the class token and the CLIP projector."""

from dataclasses import replace

import pytest
import torch

from model.config import TokenizerConfig
from model.image_decoder import ImageDecoder, unfold_patches
from model.image_encoder import fold_patches
from tests.model.tiny import fill_with_noise, tiny_tokenizer_config


def tiny_decoder(
    config: TokenizerConfig | None = None, with_clip_projector: bool = False
) -> ImageDecoder:
    """Build a float64 decoder of 4×4 cells of 2×2 pixels."""
    decoder = ImageDecoder(config or tiny_tokenizer_config(), with_clip_projector)
    fill_with_noise(decoder)
    return decoder.double().eval().requires_grad_(False)


def cells(batch: int = 2) -> torch.Tensor:
    """Draw decoder inputs (B, L, width)."""
    rng = torch.Generator().manual_seed(0)
    return torch.randn(batch, 16, 32, generator=rng, dtype=torch.float64)


def test_a_patch_is_laid_out_row_column_colour() -> None:
    """Channel (r·p + c)·3 + colour of cell (i, j) is that colour of pixel (i·p + r, j·p + c)."""
    x = torch.arange(12 * 9).reshape(1, 12, 3, 3)  # patches of 2×2, a grid of 3×3
    image = unfold_patches(x, 2)
    assert (1, 3, 6, 6) == tuple(image.shape)
    for i, j, r, c, colour in [(0, 0, 0, 0, 0), (2, 1, 0, 1, 2), (1, 2, 1, 0, 1)]:
        assert x[0, (2 * r + c) * 3 + colour, i, j] == image[0, colour, 2 * i + r, 2 * j + c]


@pytest.mark.parametrize(("patch_size", "side"), [(1, 4), (2, 3), (4, 2)])
def test_unfold_undoes_fold(patch_size: int, side: int) -> None:
    """Pixels cut into the encoder's patches and laid out by the decoder are the same pixels."""
    pixels = torch.randn(2, 3, side * patch_size, side * patch_size)
    patches = fold_patches(pixels, patch_size)  # (B, L, p·p·3)
    grid = patches.transpose(1, 2).reshape(2, -1, side, side)
    assert torch.equal(pixels, unfold_patches(grid, patch_size))


def test_images_of_a_batch_are_independent() -> None:
    """An image is the same alone and beside others."""
    decoder, x = tiny_decoder(), cells()
    pixels = decoder(x)
    assert (2, 3, 8, 8) == tuple(pixels.shape)
    torch.testing.assert_close(decoder(x[1:]), pixels[1:], rtol=0, atol=1e-12)


def test_every_cell_reaches_every_pixel() -> None:
    """Attention carries each cell's bits to the whole image."""
    decoder, x = tiny_decoder(), cells(1)
    moved = x.clone()
    moved[0, 15, 0] += 1  # one channel: a constant would be normalised away
    assert (decoder(moved) - decoder(x)).abs().amax(1).min() > 1e-9


def test_positions_tell_cells_apart() -> None:
    """Equal cells give different patches: each has its own position, as has the class token."""
    decoder = tiny_decoder()
    pixels = decoder(cells(1)[:, :1].expand(1, 16, 32))
    assert (pixels[..., :2, :2] - pixels[..., 2:4, 2:4]).abs().max() > 1e-3
    before = decoder(cells(1))
    decoder.class_token[0, 0] += 1
    assert (decoder(cells(1)) - before).abs().max() > 1e-6


def test_clip_prediction_reads_the_named_block() -> None:
    """The projector reads block `clip_layer`, counted from 0, without the class token; the pixels
    are those of a plain forward."""
    config = replace(tiny_tokenizer_config(), clip_layer=0)
    decoder, x = tiny_decoder(config, with_clip_projector=True), cells()
    pixels, prediction = decoder.forward_with_clip(x)
    assert torch.equal(decoder(x), pixels)
    after_first = decoder.blocks[0](decoder._embed(x))
    expected = decoder.clip_projector(after_first[:, 1:])
    assert (2, 16, config.encoder.width) == tuple(prediction.shape)
    assert torch.equal(expected, prediction)


def test_serving_has_no_projector() -> None:
    """A decoder built for serving holds no weight of the CLIP projector."""
    serving, training = tiny_decoder(), tiny_decoder(with_clip_projector=True)
    assert not any(name.startswith("clip_projector") for name in serving.state_dict())
    assert any(name.startswith("clip_projector") for name in training.state_dict())
