"""Checks of `tokenizer_tiny*.npz` (end to end) and `decode_full_*.npz` (the full-size decoder)."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from model.config import PRESETS, TokenizerConfig, VitConfig
from model.image_encoder import Siglip2Encoder
from model.published import TOKENIZER_NAMES
from model.tokenizer import Tokenizer
from tests.golden.check import Check, close, equal
from tests.golden.weights import load_golden_weights

CROP = slice(96, 160)  # rows and columns of the full-size image that are stored


def tokenizer_config(golden: dict[str, object]) -> TokenizerConfig:
    """Read the configuration stored in a `tokenizer_tiny*.npz`."""
    encoder: dict[str, int] = golden["encoder"]  # type: ignore[assignment]
    decoder: dict[str, int] = golden["decoder"]  # type: ignore[assignment]
    return TokenizerConfig.from_json(
        {
            "image_size": golden["image_size"],
            "patch_size": encoder["patch_size"],
            "bits_per_latent": golden["token_size"],
            "encoder_kind": "siglip2",
            "encoder": VitConfig(
                width=encoder["hidden_size"],
                depth=encoder["num_hidden_layers"],
                num_heads=encoder["num_attention_heads"],
                mlp_width=encoder["intermediate_size"],
            ).to_json(),
            "decoder": VitConfig(
                width=decoder["width"],
                depth=decoder["num_layers"],
                num_heads=decoder["num_heads"],
                mlp_width=int(decoder["width"] * decoder["mlp_ratio"]),
            ).to_json(),
            "encoder_table_size": round(encoder["num_patches"] ** 0.5),
            "clip_layer": golden["clip_align_layer_id"],
            "clip_projector_width": golden["clip_projector_width"],
        }
    )


@torch.no_grad()
def tokenizer_checks(path: Path) -> Iterator[Check]:
    """Yield every check of one `tokenizer_tiny*.npz`."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    prefix = "override:"
    overrides = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    tokenizer = Tokenizer(tokenizer_config(json.loads(str(arrays["config"]))))
    load_golden_weights(tokenizer, TOKENIZER_NAMES, overrides)
    assert isinstance(tokenizer.encoder, Siglip2Encoder)
    pixels = torch.from_numpy(arrays["image"])
    output = tokenizer(pixels)
    yield close("encoder_features", output.features, arrays["encoder_features"])
    yield close("frozen_features", tokenizer.encoder.clip_target(pixels), arrays["frozen_features"])
    yield equal("bits", tokenizer.encode(pixels), arrays["bits"])
    yield close("clip_pred", output.clip_prediction, arrays["clip_pred"])
    yield close("reconstruction", output.reconstruction, arrays["reconstruction"])
    decoded = tokenizer.decode(torch.from_numpy(arrays["token_bits"]))
    yield close("decoded", decoded, arrays["decoded"])


@torch.no_grad()
def full_decoder_checks(path: Path) -> Iterator[Check]:
    """Yield every check of one `decode_full_*.npz`; the size follows from its bits."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    _, num_cells, bits_per_latent = arrays["token_bits"].shape
    published = PRESETS["bar-b"].tokenizer
    side = round(num_cells**0.5) * published.patch_size
    config = TokenizerConfig(
        image_size=side,
        patch_size=published.patch_size,
        bits_per_latent=bits_per_latent,
        encoder_kind=published.encoder_kind,
        encoder=published.encoder,
        decoder=published.decoder,
    )
    tokenizer = Tokenizer(config, with_encoder=False)
    load_golden_weights(tokenizer, TOKENIZER_NAMES)
    image = tokenizer.decode(torch.from_numpy(arrays["token_bits"]))
    crop = image[:, :, CROP, CROP]
    yield close("image_crop", crop, arrays["image_crop"])
    yield close("image_mean", image.mean((2, 3)), arrays["image_mean"])
    yield close("image_std", image.std((2, 3)), arrays["image_std"])
