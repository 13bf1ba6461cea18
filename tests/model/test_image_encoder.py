"""The encoders: the small ViT, and SigLIP2 with its frozen twin."""

import sys
from dataclasses import replace

import pytest
import torch

from model.config import TokenizerConfig
from model.image_encoder import Siglip2Encoder, VitEncoder, fold_patches
from tests.model.tiny import fill_with_noise, tiny_tokenizer_config

SIGLIP2 = replace(tiny_tokenizer_config(), encoder_kind="siglip2", clip_layer=1)


def tiny_vit() -> VitEncoder:
    """Build a float64 encoder with random weights."""
    encoder = VitEncoder(tiny_tokenizer_config())
    fill_with_noise(encoder)
    return encoder.double().eval().requires_grad_(False)


def pixels(config: TokenizerConfig = SIGLIP2, batch: int = 2) -> torch.Tensor:
    """Draw images (B, 3, size, size) in [-1, 1]."""
    rng = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, config.image_size, config.image_size, generator=rng) * 2 - 1


def test_patches_are_flattened_row_column_colour() -> None:
    """Patch (i, j) stands at i · columns + j and holds its pixels row by row, colours innermost."""
    image = torch.arange(3 * 4 * 6).reshape(1, 3, 4, 6)
    patches = fold_patches(image, 2)
    assert (1, 6, 12) == tuple(patches.shape)
    expected = [
        image[0, colour, 2 + r, 4 + c] for r in (0, 1) for c in (0, 1) for colour in (0, 1, 2)
    ]
    assert expected == patches[0, 1 * 3 + 2].tolist()


def test_vit_features() -> None:
    """The small encoder gives one feature vector per cell, the same alone and in a batch."""
    encoder, images = tiny_vit(), pixels().double()
    features = encoder(images)
    assert (2, 16, 32) == tuple(features.shape)
    torch.testing.assert_close(encoder(images[1:]), features[1:], rtol=0, atol=1e-12)


def test_vit_sees_positions_and_the_whole_image() -> None:
    """Equal patches differ by position, and every cell sees every pixel."""
    encoder, images = tiny_vit(), pixels(batch=1).double()
    flat = encoder(torch.zeros_like(images))[0]
    assert (flat[0] - flat[5]).abs().max() > 1e-3
    moved = images.clone()
    moved[..., -1, -1] += 1
    assert (encoder(moved) - encoder(images)).abs().amax(-1).min() > 1e-9


def test_siglip2_starts_as_its_frozen_twin() -> None:
    """Before training, features and CLIP target are the same function of the pixels."""
    pytest.importorskip("transformers")
    encoder = Siglip2Encoder(SIGLIP2).eval()
    features = encoder(pixels())
    assert (2, 16, 32) == tuple(features.shape)
    assert torch.equal(features, encoder.clip_target(pixels()))


def test_siglip2_trains_its_copy_alone() -> None:
    """Gradients reach the copied transformer and norm; patch embedding and original stay frozen,
    and the CLIP target carries no gradient and does not move."""
    pytest.importorskip("transformers")
    encoder = Siglip2Encoder(SIGLIP2)
    target = encoder.clip_target(pixels())
    encoder(pixels()).square().sum().backward()
    moved = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert {"trained", "trained_norm"} == {name.partition(".")[0] for name in moved}
    assert not target.requires_grad
    with torch.no_grad():
        for parameter in encoder.trained.parameters():
            parameter.add_(1)
    assert torch.equal(target, encoder.clip_target(pixels()))


def test_siglip2_resizes_its_position_table() -> None:
    """A grid that is not the table's own is served by the resized table."""
    pytest.importorskip("transformers")
    config = replace(SIGLIP2, encoder_table_size=3)
    assert (2, 16, 32) == tuple(Siglip2Encoder(config)(pixels()).shape)


def test_siglip2_without_transformers_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where transformers is missing, the ValueError holds the command that installs it."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'bar-serve\[siglip2\]'"):
        Siglip2Encoder(SIGLIP2)
