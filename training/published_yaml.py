"""The published YAML configurations, read as they are: their keys on the left, ours on the right.

Used by `config_files.py`. What only their launcher or their trackers use is left aside; a key that
is in neither table is an error, since a setting that is silently ignored changes a training.
Interpolations such as `${optimizer.params.learning_rate}` are followed.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from training.errors import TrainingError

SHARED: Mapping[str, str] = {
    "experiment.name": "name",
    "training.seed": "seed",
    "training.max_train_steps": "training.num_steps",
    "training.max_grad_norm": "training.optimiser.max_grad_norm",
    "training.gradient_accumulation_steps": "training.micro_batches",
    "training.per_gpu_batch_size": "training.batch_size",
    "training.mixed_precision": "training.precision",
    "experiment.save_every": "training.checkpoint_every",
    "experiment.eval_every": "training.validate_every",
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
    "model.generator.dropout": "dropout",
    "model.generator.class_label_dropout": "masking.class_dropout",
    "model.generator.randomness_anneal_start": "masking.order_annealing.start",
    "model.generator.randomness_anneal_end": "masking.order_annealing.end",
    "model.generator.guidance_scale": "sampling.guidance_scale",
    "model.generator.mbm_head.randomize_temperature": "sampling.temperature",
    "model.generator.mbm_head.tokens_allocation": "sampling.unmask_schedule",
    "model.generator.mbm_head.hidden_size": "generator.head_width",
    "model.generator.mbm_head.num_layers": "generator.head_depth",
}
TOKENIZER: Mapping[str, str] = {
    **SHARED,
    "losses.reconstruction_weight": "losses.l2",
    "losses.l1_weight": "losses.l1",
    "losses.perceptual_weight": "losses.lpips",
    "losses.discriminator_weight": "losses.adversarial",
    "losses.discriminator_start": "discriminator.start",
    "dataset.preprocessing.crop_size": "tokenizer.image_size",
}
ASIDE = re.compile(
    r"experiment\.|dataset\.params\.|dataset\.preprocessing\.|optimizer\.name$"
    r"|lr_scheduler\.(scheduler$|params\.learning_rate$)|model\.vq_model\."
    r"|model\.generator\.(intermediate_size|attn_drop|use_checkpoint|guidance_scale_pow)$"
    r"|training\.(enable_|use_ema$|num_generated_images$)"
)
PRECISIONS = {"bf16": "bfloat16", "no": "float32", "fp32": "float32"}
_REFERENCE = re.compile(r"\$\{([\w.]+)\}$")


def is_published(values: Mapping[str, Any]) -> bool:
    """Say whether these are the sections of a published configuration."""
    return "experiment" in values and "model" in values


def read_published(values: Mapping[str, Any], is_tokenizer: bool) -> dict[str, Any]:
    """Return a published configuration under our names. Raises TrainingError for unknown keys."""
    names = TOKENIZER if is_tokenizer else GENERATOR
    flat = dict(_flatten(values))
    unknown = [key for key in flat if key not in names and not ASIDE.match(key)]
    if unknown:
        raise TrainingError(
            f"the published configuration has settings that have no counterpart here: "
            f"{', '.join(sorted(unknown))}; remove them, or write a run of your own from a preset"
        )
    ours = {names[key]: _followed(value, flat) for key, value in flat.items() if key in names}
    return _nested(_translated(ours, is_tokenizer))


def _translated(ours: dict[str, Any], is_tokenizer: bool) -> dict[str, Any]:
    """Convert what is counted or called differently."""
    if (precision := ours.get("training.precision")) is not None:
        ours["training.precision"] = PRECISIONS.get(str(precision), precision)
    if (num_cells := ours.pop("num_cells", None)) is not None:
        ours["generator.grid_size"] = round(int(num_cells) ** 0.5)
    if (bits := ours.pop("bits_per_latent", None)) is not None:
        ours["tokenizer.bits_per_latent" if is_tokenizer else "generator.bits_per_latent"] = bits
    # Theirs is the batch of one micro-batch on one GPU; ours is what one step sees.
    if "training.batch_size" in ours:
        ours["training.batch_size"] *= ours.get("training.micro_batches", 1)
    return ours


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _followed(value: Any, flat: Mapping[str, Any]) -> Any:
    reference = _REFERENCE.match(value) if isinstance(value, str) else None
    return value if reference is None else flat[reference[1]]


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return nested
