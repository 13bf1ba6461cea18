"""What the published checkpoints call things: parameter names and configuration keys, both ways.

Read by `checkpoint.py`, by training when it is given a published configuration, and by the parity
checks; no other file knows these names. `#` stands for a layer number. A name is translated by the
first row whose prefix it has, and keeps the rest.
"""

import re
from typing import Any

from model.config import GeneratorConfig

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


def published_name(name: str, table: Table) -> str:
    """Return the published name of our parameter `name`; KeyError if the table lacks it."""
    return _translate(name, table)


def our_name(name: str, table: Table) -> str:
    """Return our name of the published parameter `name`; KeyError if the table lacks it."""
    return _translate(name, tuple((theirs, ours) for ours, theirs in table))


def _translate(name: str, table: Table) -> str:
    for source, target in table:
        pattern = re.escape(source).replace(r"\#", r"(\d+)")
        if match := re.match(rf"{pattern}(?=\.|$)", name):
            layer = match.group(1) if match.groups() else ""
            return target.replace("#", layer) + name[match.end() :]
    raise KeyError(name)


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
