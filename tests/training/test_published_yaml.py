"""Configurations under the published names."""

from pathlib import Path

import pytest

from training.config_files import build_run
from training.errors import TrainingError
from training.run_config import GeneratorRun

PUBLISHED = """\
experiment:
    project: "bar"
    name: "bar_b"
    output_dir: "bar_b"
    save_every: 50_000
    log_every: 50
model:
    vq_model:
        token_size: 16
        pretrained_tokenizer_weight: tokenizer.bin
    generator:
        hidden_size: 768
        num_hidden_layers: 24
        num_attention_heads: 12
        dropout: 0.1
        attn_drop: 0.1
        class_label_dropout: 0.1
        image_seq_len: 256
        patch_size: 4
        condition_num_classes: 1000
        guidance_scale: 9.6
        randomness_anneal_start: 125000
        randomness_anneal_end: 187500
        mbm_head:
            randomize_temperature: 1.4
            tokens_allocation: [64, 64, 64, 64]
optimizer:
    name: adamw
    params:
        learning_rate: 3e-4
        beta2: 0.96
lr_scheduler:
    scheduler: "cosine"
    params:
        learning_rate: ${optimizer.params.learning_rate}
        end_lr: ${optimizer.params.learning_rate}
training:
    gradient_accumulation_steps: 2
    per_gpu_batch_size: 64
    mixed_precision: "bf16"
    enable_wandb: True
    max_train_steps: 1_000
"""
GIVEN = {"data": {"path": "pictures"}, "tokenizer": "digits"}


def read(text: str, folder: Path) -> GeneratorRun:
    """Lay a published file over the preset."""
    path = folder / "bar_b.yaml"
    path.write_text(text, "utf-8")
    return build_run(GeneratorRun, preset="bar-b", file=path, given=GIVEN, overrides=[])


def test_published_names_become_ours(tmp_path: Path) -> None:
    """Sizes, sampling, annealing, optimiser and steps arrive under our names."""
    run = read(PUBLISHED, tmp_path)
    assert ("bar_b", 0.1) == (run.name, run.dropout)
    assert (256, 16) == (run.generator.bits_per_token, run.generator.num_tokens)
    assert (9.6, 1.4) == (run.sampling.guidance_scale, run.sampling.temperature)
    assert (64, 64, 64, 64) == run.sampling.unmask_schedule
    assert (125000, 187500) == (
        run.masking.order_annealing.start,
        run.masking.order_annealing.end,
    )
    training = run.training
    assert (1000, 50_000, 50) == (
        training.num_steps,
        training.checkpoint_every,
        training.log_every,
    )
    assert (3e-4, 0.96) == (training.optimiser.learning_rate, training.optimiser.beta2)
    assert "bfloat16" == training.precision


def test_references_are_followed(tmp_path: Path) -> None:
    """`${…}` stands for the value it names."""
    assert 3e-4 == read(PUBLISHED, tmp_path).training.optimiser.final_learning_rate


def test_accumulated_batch_is_one_steps_batch(tmp_path: Path) -> None:
    """Their batch is of one micro-batch, ours of a step: 64 twice is 128 in 2 parts."""
    training = read(PUBLISHED, tmp_path).training
    assert (128, 2) == (training.batch_size, training.micro_batches)


def test_unknown_published_setting_is_refused(tmp_path: Path) -> None:
    """A setting that would be ignored silently is an error that names it."""
    changed = PUBLISHED.replace(
        "        patch_size: 4\n", "        patch_size: 4\n        moe: 8\n"
    )
    with pytest.raises(TrainingError, match=r"no counterpart here: model\.generator\.moe"):
        read(changed, tmp_path)
