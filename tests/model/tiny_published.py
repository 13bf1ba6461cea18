"""A tiny published model: files as the hub has them, and the preset that they belong to."""

import io
from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import GeneratorConfig, Preset, SamplingConfig, TokenizerConfig, VitConfig
from model.generator import Generator
from model.published import GENERATOR_NAMES, TOKENIZER_NAMES, published_name
from model.rope import rotary_table
from model.tokenizer import Tokenizer
from tests.model.tiny import fill_with_noise

NAME = "bar-tiny"
FILES = ("generator/bar_tiny.bin", "tokenizer/bar_tiny.bin")
PRESET = Preset(
    generator=GeneratorConfig(
        grid_size=4,
        patch_size=2,
        bits_per_latent=3,
        width=32,
        depth=2,
        num_heads=2,
        num_classes=1000,
        class_repeat=3,
        head_width=32,
        head_depth=2,
    ),
    tokenizer=TokenizerConfig(
        image_size=8,
        patch_size=2,
        bits_per_latent=3,
        encoder_kind="siglip2",
        encoder=VitConfig(width=24, depth=2, num_heads=2, mlp_width=32),
        decoder=VitConfig(width=32, depth=3, num_heads=2, mlp_width=64),
        encoder_table_size=4,
        clip_projector_width=16,
    ),
    sampling=SamplingConfig(guidance_scale=3.0, temperature=1.5, unmask_schedule=(4, 8)),
    generator_file=FILES[0],
    tokenizer_file=FILES[1],
)


def build() -> tuple[Generator, Tokenizer]:
    """Build the preset's modules with random weights."""
    generator, tokenizer = Generator(PRESET.generator), Tokenizer(PRESET.tokenizer)
    fill_with_noise(generator)
    fill_with_noise(tokenizer)
    return generator.eval(), tokenizer.eval()


def published_generator(generator: Generator) -> dict[str, Tensor]:
    """Return the state dict of `generator` as it would be published, rotary tables included."""
    state = {
        published_name(name, GENERATOR_NAMES): value
        for name, value in generator.state_dict().items()
    }
    for layer in range(generator.config.depth):
        cos, sin = rotary_table(generator.config)
        state[f"blocks.{layer}.attn.rope.freqs_cos"] = cos
        state[f"blocks.{layer}.attn.rope.freqs_sin"] = sin
    return state


def published_tokenizer(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Return the state dict of `tokenizer` as it would be published: the frozen tower under both
    of its names, and a pooling head."""
    state = {
        published_name(name, TOKENIZER_NAMES): value
        for name, value in tokenizer.state_dict().items()
    }
    for name, value in list(state.items()):
        if name.startswith("encoder.frozen_"):
            state[name.replace("encoder.frozen_", "encoder.siglip.")] = value
    state["encoder.siglip.head.probe"] = torch.zeros(1, 1, 24)
    return state


def as_file(state: Mapping[str, object]) -> bytes:
    """Pickle a state dict as the published files are."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def published_files(generator: Generator, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Return the files of a commit on the hub."""
    return {
        FILES[0]: as_file(published_generator(generator)),
        FILES[1]: as_file(published_tokenizer(tokenizer)),
    }
