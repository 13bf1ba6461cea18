"""Checks of `state_dicts/*.json` and `*.state_dict.json`: every published key is accounted for.

The files hold shapes alone, so the architecture is read off them, as far as shapes depend on it:
`{"parameters": n, "tensors": {name: shape}}`, or the map of names to shapes by itself.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from model.config import GeneratorConfig, TokenizerConfig, VitConfig
from model.generator import Generator
from model.published import GENERATOR_NAMES, POOLING_HEAD, TOKENIZER_NAMES, rename
from model.tokenizer import Tokenizer
from model.transformer import FIRST_CLASS_ROW, SPARE_CONDITIONS
from tests.golden.check import Check

Shapes = dict[str, tuple[int, ...]]
ROTARY = re.compile(r"blocks\.\d+\.attn\.rope\.freqs_(cos|sin)")


def state_dict_checks(path: Path) -> Iterator[Check]:
    """Yield the checks of one list of published keys and shapes."""
    stored = json.loads(path.read_text())
    tensors = stored.get("tensors", stored)
    shapes: Shapes = {name: tuple(shape) for name, shape in tensors.items()}
    if "cls_token" in shapes:
        config = generator_config_of(shapes)
        yield _rotary_check(shapes, config)
        with torch.device("meta"):
            module: nn.Module = Generator(config)
        published = rename(shapes, GENERATOR_NAMES)
    else:
        with torch.device("meta"):
            module = Tokenizer(tokenizer_config_of(shapes))
        published = rename(shapes, TOKENIZER_NAMES)
    ours = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    names = published.state | ours
    wrong = [name for name in names if published.state.get(name) != ours.get(name)]
    wrong += published.unknown
    unit = f" of {len(names)} differ" + "".join(f" {name}" for name in wrong[:5])
    yield Check("keys and shapes", len(wrong), 0, unit)
    if "parameters" in stored:
        yield _parameter_check(ours, published.unused, stored["parameters"])


def generator_config_of(shapes: Shapes) -> GeneratorConfig:
    """Read a generator's architecture off its tensors. How k divides into patch and bits per
    latent cell leaves no trace in any shape: the patch is taken as 1."""
    width = shapes["cls_token"][-1]
    num_tokens = shapes["timesteps_embeddings"][1] - SPARE_CONDITIONS
    return GeneratorConfig(
        grid_size=round(num_tokens**0.5),
        patch_size=1,
        bits_per_latent=shapes["lm_head.output_embed.weight"][0] // 2,
        width=width,
        depth=_depth(shapes, "blocks"),
        num_heads=width // shapes["blocks.0.attn.q_norm.weight"][0],
        num_classes=shapes["embeddings.weight"][0] - FIRST_CLASS_ROW - 1,
        class_repeat=shapes["blocks.0.attn.rope.freqs_cos"][0] - num_tokens - 1,
        head_width=shapes["latent_condition_proj.weight"][0],
        head_depth=_depth(shapes, "lm_head.transformer"),
    )


def tokenizer_config_of(shapes: Shapes) -> TokenizerConfig:
    """Read a tokenizer's architecture off its tensors, with one head wherever that is not seen."""
    decoder_width = shapes["decoder.class_embedding"][-1]
    grid_size = round((shapes["decoder.positional_embedding"][0] - 1) ** 0.5)
    patch_size = round((shapes["decoder.ffn.0.weight"][0] // 3) ** 0.5)
    table_size, encoder_width = shapes["encoder.siglip.embeddings.position_embedding.weight"]
    first_mlp = "encoder.trainable_encoder.layers.0.mlp.fc1.weight"
    return TokenizerConfig(
        image_size=grid_size * patch_size,
        patch_size=patch_size,
        bits_per_latent=shapes["quantize.in_proj.weight"][0],
        encoder_kind="siglip2",
        encoder=VitConfig(
            width=encoder_width,
            depth=_depth(shapes, "encoder.trainable_encoder.layers"),
            num_heads=1,
            mlp_width=shapes[first_mlp][0],
        ),
        decoder=VitConfig(
            width=decoder_width,
            depth=_depth(shapes, "decoder.transformer"),
            num_heads=1,
            mlp_width=shapes["decoder.transformer.0.mlp.fc1.weight"][0],
        ),
        encoder_table_size=round(table_size**0.5),
        clip_layer=0,
        clip_projector_width=shapes["decoder.clip_projector.0.weight"][0],
    )


def _depth(shapes: Shapes, prefix: str) -> int:
    layers = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return 1 + max(int(match[1]) for match in map(layers.match, shapes) if match)


def _rotary_check(shapes: Shapes, config: GeneratorConfig) -> Check:
    expected = (config.prefix_len + config.num_tokens, config.head_dim)
    rotary = {name: shape for name, shape in shapes.items() if ROTARY.match(name)}
    wrong = sum(shape != expected for shape in rotary.values())
    missing = abs(len(rotary) - 2 * config.depth)
    return Check("rotary tables", wrong + missing, 0, f" of {2 * config.depth} differ")


def _parameter_check(ours: Shapes, unused: Shapes, parameters: int) -> Check:
    """Compare parameter counts; the frozen tower counts once, its pooling head as well."""
    head = {name: shape for name, shape in unused.items() if name.startswith(POOLING_HEAD)}
    counted = sum(torch.Size(shape).numel() for shape in (*ours.values(), *head.values()))
    return Check("parameters", abs(counted - parameters), 0, f" off {parameters}")
