"""The published YAML configurations, read as they are: their keys on the left, ours on the right.

Used by `config_files.py`. What only their launcher or their trackers use is left aside; a key that
is in no table is an error, since a setting that is silently ignored changes a training, and so is
another value of what is always the same here. Interpolations such as
`${optimizer.params.learning_rate}` are followed. A generator's file says everything; a tokenizer's
leaves out how large encoder and decoder are, and its name says which preset has that.
"""

import re
from collections.abc import Iterator, Mapping
from math import isqrt
from typing import Any

from training.errors import TrainingError
from training.presets import TOKENIZERS

SHARED: Mapping[str, str] = {
    "experiment.name": "name",
    "training.seed": "seed",
    "training.max_train_steps": "training.num_steps",
    "training.max_grad_norm": "training.optimiser.max_grad_norm",
    "training.gradient_accumulation_steps": "training.micro_batches",
    "training.per_gpu_batch_size": "training.batch_size",
    "training.mixed_precision": "training.precision",
    "training.compile_model": "training.compile",
    "training.use_ema": "training.average_decay",
    "experiment.save_every": "training.checkpoint_every",
    # Samples are what ours makes at a validation; theirs only validates when asked separately.
    "experiment.generate_every": "training.validate_every",
    "experiment.log_every": "training.log_every",
    "optimizer.params.learning_rate": "training.optimiser.learning_rate",
    "optimizer.params.beta1": "training.optimiser.beta1",
    "optimizer.params.beta2": "training.optimiser.beta2",
    "optimizer.params.weight_decay": "training.optimiser.weight_decay",
    "lr_scheduler.params.warmup_steps": "training.optimiser.warmup_steps",
    "lr_scheduler.params.end_lr": "training.optimiser.final_learning_rate",
    "dataset.preprocessing.random_flip": "data.flip",
    "model.vq_model.token_size": "bits_per_latent",
}
GENERATOR: Mapping[str, str] = {
    **SHARED,
    "model.generator.hidden_size": "generator.width",
    "model.generator.num_hidden_layers": "generator.depth",
    "model.generator.num_attention_heads": "generator.num_heads",
    "model.generator.patch_size": "generator.patch_size",
    "model.generator.condition_num_classes": "generator.num_classes",
    "model.generator.repeat_class_condition": "generator.class_repeat",
    "model.generator.image_seq_len": "num_cells",
    "model.generator.use_checkpoint": "training.recompute",
    "model.generator.dropout": "dropout",
    "model.generator.class_label_dropout": "masking.class_dropout",
    "model.generator.randomness_anneal_start": "masking.order_annealing.start",
    "model.generator.randomness_anneal_end": "masking.order_annealing.end",
    "model.generator.guidance_scale": "sampling.guidance_scale",
    "model.generator.mbm_head.randomize_temperature": "sampling.temperature",
    "model.generator.mbm_head.tokens_allocation": "sampling.unmask_schedule",
    "model.generator.mbm_head.width": "generator.head_width",
    "model.generator.mbm_head.num_layers": "generator.head_depth",
}
TOKENIZER: Mapping[str, str] = {
    **SHARED,
    "model.vq_model.encoder_lr_mult": "training.optimiser.encoder_scale",
    "model.vq_model.clip_align_layer_id": "tokenizer.clip_layer",
    "model.vq_model.vit_dec_patch_size": "tokenizer.patch_size",
    "model.vq_model.use_checkpoint": "training.recompute",
    "losses.reconstruction_weight_l2": "losses.l2",
    "losses.reconstruction_weight_l1": "losses.l1",
    "losses.perceptual_loss": "perceptual_loss",
    "losses.perceptual_weight": "perceptual_weight",
    "losses.clip_loss_weight": "losses.clip",
    "losses.gram_loss_weight": "losses.gram",
    "losses.discriminator_weight": "losses.adversarial",
    "losses.discriminator_start": "discriminator.start",
    "optimizer.params.discriminator_learning_rate": "discriminator.learning_rate",
    "dataset.preprocessing.crop_size": "tokenizer.image_size",
    "dataset.preprocessing.random_crop": "data.crop",
}
ALWAYS: Mapping[str, Any] = {
    "model.generator.target_codebook_size": 2,  # values of a bit
    "model.discriminator.norm_type": "bn",
    "losses.discriminator_factor": 1,
    "optimizer.name": "adamw",
    "lr_scheduler.scheduler": "cosine",
}
ASIDE = re.compile(
    r"experiment\.|dataset\.params\.|lr_scheduler\.params\.learning_rate$"
    r"|dataset\.preprocessing\.(resize_shorter_edge|crop_size|random_crop)$"
    r"|model\.vq_model\.(codebook_size|pretrained_tokenizer_weight|vit_dec_patch_size)$"
    r"|model\.discriminator\.dino_ckpt_path$"
    r"|model\.generator\.(intermediate_size|attn_drop|guidance_scale_pow)$"
    r"|training\.(enable_|num_generated_images$)"
)
AVERAGE_DECAY = 0.999  # where their files only say that there is an average
PRECISIONS = {"bf16": "bfloat16", "no": "float32", "fp32": "float32"}
_PERCEPTUAL = re.compile(r"lpips-convnext_s-(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)$")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}$")


def is_published(values: Mapping[str, Any]) -> bool:
    """Say whether these are the sections of a published configuration."""
    return "experiment" in values and "model" in values


def read_published(values: Mapping[str, Any], is_tokenizer: bool) -> dict[str, Any]:
    """Return a published configuration under our names, and under `preset` which preset has the
    architecture of a tokenizer whose name is known.

    Raises TrainingError for unknown keys, and for values that nothing here can have.
    """
    names = TOKENIZER if is_tokenizer else GENERATOR
    flat = dict(flatten(values))
    unknown = [
        key for key in flat if key not in names and key not in ALWAYS and not ASIDE.match(key)
    ]
    if unknown:
        raise TrainingError(
            f"the published configuration has settings that have no counterpart here: "
            f"{', '.join(sorted(unknown))}; remove them, or write a run of your own from a preset"
        )
    flat = {key: _followed(key, flat) for key in flat}
    _check(flat)
    ours = {names[key]: value for key, value in flat.items() if key in names}
    _translate(ours)
    (_complete_tokenizer if is_tokenizer else _complete_generator)(ours, flat)
    return _nested(ours)


def _check(flat: Mapping[str, Any]) -> None:
    """Refuse what is always the same here, where the file has it otherwise."""
    wanted = dict(ALWAYS)
    if isinstance(bits := flat.get("model.vq_model.token_size"), int):
        wanted["model.vq_model.codebook_size"] = 2**bits
    if "dataset.preprocessing.crop_size" in flat:
        size = flat["dataset.preprocessing.crop_size"]
        wanted["dataset.preprocessing.resize_shorter_edge"] = size
    for key, value in wanted.items():
        if flat.get(key, value) != value:
            raise TrainingError(
                f"{key} of the published configuration must be {value!r} here, got {flat[key]!r}"
            )


def _translate(ours: dict[str, Any]) -> None:
    """Convert what is counted or called differently for both stages."""
    if (precision := ours.get("training.precision")) is not None:
        ours["training.precision"] = PRECISIONS.get(str(precision), precision)
    if "training.average_decay" in ours:
        ours["training.average_decay"] = AVERAGE_DECAY if ours["training.average_decay"] else None
    # Theirs is the batch of one micro-batch on one GPU; ours is what one step sees.
    if "training.batch_size" in ours:
        ours["training.held_out_batch"] = ours["training.batch_size"]
        ours["training.batch_size"] *= ours.get("training.micro_batches", 1)


def _complete_generator(ours: dict[str, Any], flat: Mapping[str, Any]) -> None:
    """Convert what only generators have. A file without a patch size means 1."""
    if (bits := ours.pop("bits_per_latent", None)) is not None:
        ours["generator.bits_per_latent"] = bits
    if (num_cells := ours.pop("num_cells", None)) is not None:
        side = isqrt(num_cells) if isinstance(num_cells, int) and num_cells > 0 else 0
        if side == 0 or side**2 != num_cells:
            raise TrainingError(
                f"model.generator.image_seq_len must be a square, side by side, got {num_cells}"
            )
        ours["generator.grid_size"] = side
    if any(key.startswith("model.generator.") for key in flat):
        ours.setdefault("generator.patch_size", 1)


def _complete_tokenizer(ours: dict[str, Any], flat: Mapping[str, Any]) -> None:
    """Convert what only tokenizers have, and name the preset."""
    if (bits := ours.pop("bits_per_latent", None)) is not None:
        ours["tokenizer.bits_per_latent"] = bits
    if "data.crop" in ours:
        ours["data.crop"] = "random" if ours["data.crop"] else "centre"
    kind, weight = ours.pop("perceptual_loss", None), ours.pop("perceptual_weight", None)
    if (kind, weight) != (None, None):
        shares = _PERCEPTUAL.match(str(kind))
        total = sum(map(float, shares.groups())) if shares else 0.0
        if shares is None or not total or not isinstance(weight, int | float):
            raise TrainingError(
                "losses.perceptual_loss must be such as 'lpips-convnext_s-1.0-0.1', and "
                f"losses.perceptual_weight a number, got {kind!r} and {weight!r}"
            )
        # Theirs is a weighted mean of the two; ours are two weights of a sum.
        unit = weight / total
        ours["losses.lpips"] = unit * float(shares[1])
        ours["losses.convnext"] = unit * float(shares[2])
    if (name := str(flat.get("experiment.name")).replace("_", "-")) in TOKENIZERS:
        ours["preset"] = name


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of nested sections under their full names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _followed(key: str, flat: Mapping[str, Any]) -> Any:
    value, seen = flat[key], [key]
    while isinstance(value, str) and (reference := _REFERENCE.match(value)):
        if reference[1] not in flat or reference[1] in seen:
            raise TrainingError(f"{key} refers to {value}, which leads to no value")
        seen.append(reference[1])
        value = flat[reference[1]]
    return value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return nested
