"""What the published checkpoints call things: parameter names and configuration keys, both ways.

Read by `checkpoint.py`, by training when it is given a published configuration, and by the parity
checks; no other file knows these names. `#` stands for a layer number. A name is translated by the
first row whose prefix it has, and keeps the rest.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from model.config import GeneratorConfig
from model.errors import CheckpointError

Value = TypeVar("Value")

# ours, published
GENERATOR_NAMES = (
    ("trunk.cls_token", "cls_token"),
    ("trunk.class_embed", "embeddings"),
    ("trunk.bit_embed", "input_embeddings"),
    ("trunk.bit_merge", "input_merge"),
    ("trunk.position_embed", "pos_embed"),
    ("trunk.target_position_embed", "target_aware_pos_embed"),
    ("trunk.condition_position_embed", "timesteps_embeddings"),
    ("trunk.blocks.#.modulation", "blocks.#.adaLN_modulation.1"),
    ("trunk.blocks", "blocks"),
    ("trunk.norm", "norm"),
    ("trunk.latent_proj", "latent_condition_proj"),
    ("head.bit_embed", "lm_head.input_embed"),
    ("head.input_proj", "lm_head.input_proj"),
    ("head.input_norm", "lm_head.ln_pre"),
    ("head.ratio_embed.frequencies", "lm_head.t_embedder.W"),
    ("head.ratio_embed.mlp", "lm_head.t_embedder.mlp"),
    ("head.blocks.#.norm", "lm_head.transformer.#.in_ln"),
    ("head.blocks.#.modulation", "lm_head.transformer.#.adaLN_modulation.1"),
    ("head.blocks", "lm_head.transformer"),
    ("head.final_norm", "lm_head.adaln_before_head.norm_final"),
    ("head.final_modulation", "lm_head.adaln_before_head.adaLN_modulation.1"),
    ("head.bit_logits", "lm_head.output_embed"),
)
TOKENIZER_NAMES = (
    ("decoder.class_token", "decoder.class_embedding"),
    ("decoder.position_embed", "decoder.positional_embedding"),
    ("decoder.norm_pre", "decoder.ln_pre"),
    ("decoder.norm_post", "decoder.ln_post"),
    ("decoder.blocks", "decoder.transformer"),
    ("decoder.to_pixels", "decoder.ffn.0"),
    ("decoder.smooth", "decoder.conv_out"),
    ("decoder.clip_projector", "decoder.clip_projector"),
    ("quantizer", "quantize"),
    ("encoder.frozen.embeddings", "encoder.siglip.embeddings"),
    ("encoder.frozen.encoder", "encoder.frozen_encoder"),
    ("encoder.frozen.post_layernorm", "encoder.frozen_post_layernorm"),
    ("encoder.trained_norm", "encoder.trainable_post_layernorm"),
    ("encoder.trained", "encoder.trainable_encoder"),
)
Table = tuple[tuple[str, str], ...]

# Published names without a counterpart here, and what a file may therefore hold beyond the table.
ROTARY_TABLES = ("blocks.#.attn.rope.freqs_cos", "blocks.#.attn.rope.freqs_sin")  # computed
FROZEN_TWINS = ("encoder.siglip.encoder", "encoder.siglip.post_layernorm")  # stored under two names
POOLING_HEAD = ("encoder.siglip.head",)  # of SigLIP2; BAR never reads it
UNUSED_NAMES = (*ROTARY_TABLES, *FROZEN_TWINS, *POOLING_HEAD)

# What torch.compile and DistributedDataParallel put before the names of what they wrap.
_WRAPPERS = re.compile(r"^(?:(?:_orig_mod|module)\.)+")


def published_name(name: str, table: Table) -> str:
    """Return the published name of our parameter `name`; KeyError if the table lacks it."""
    return _translate(name, table)


def our_name(name: str, table: Table) -> str:
    """Return our name of the published parameter `name`; KeyError if the table lacks it."""
    return _translate(name, tuple((theirs, ours) for ours, theirs in table))


@dataclass(frozen=True)
class Renamed(Generic[Value]):
    """A published state dict under our names, and what of it has none."""

    state: dict[str, Value] = field(default_factory=dict)  # by our names
    unused: dict[str, Value] = field(default_factory=dict)  # published names, among UNUSED_NAMES
    unknown: list[str] = field(default_factory=list)  # published names


def rename(published: Mapping[str, Value], table: Table) -> Renamed[Value]:
    """Bring a published state dict (or its shapes) under our names, without wrappers' prefixes.

    Raises CheckpointError if two of its names come out the same.
    """
    renamed: Renamed[Value] = Renamed()
    for wrapped, value in published.items():
        name = _WRAPPERS.sub("", wrapped)
        if any(_match(prefix, name) for prefix in UNUSED_NAMES):
            renamed.unused[name] = value
            continue
        try:
            ours = our_name(name, table)
        except KeyError:
            renamed.unknown.append(wrapped)
            continue
        if ours in renamed.state:
            raise CheckpointError(f"the file holds {name} twice, under different prefixes")
        renamed.state[ours] = value
    return renamed


def _translate(name: str, table: Table) -> str:
    for source, target in table:
        if match := _match(source, name):
            layer = match.group(1) if match.groups() else ""
            return target.replace("#", layer) + name[match.end() :]
    raise KeyError(name)


def _match(prefix: str, name: str) -> re.Match[str] | None:
    pattern = re.escape(prefix).replace(r"\#", r"(\d+)")
    return re.match(rf"{pattern}(?=\.|$)", name)


def generator_config(values: dict[str, Any]) -> GeneratorConfig:
    """Read the `model` section of a published configuration, with or without its outer key."""
    model = values.get("model", values)
    generator, tokenizer = model["generator"], model["vq_model"]
    head = generator["mbm_head"]
    grid_size = round(generator["image_seq_len"] ** 0.5)
    return GeneratorConfig(
        grid_size=grid_size,
        patch_size=generator["patch_size"],
        bits_per_latent=tokenizer["token_size"],
        width=generator["hidden_size"],
        depth=generator["num_hidden_layers"],
        num_heads=generator["num_attention_heads"],
        num_classes=generator["condition_num_classes"],
        class_repeat=generator["repeat_class_condition"],
        head_width=head["width"],
        head_depth=head["num_layers"],
    )
