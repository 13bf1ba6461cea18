"""How much memory a run will need, counted before it starts.

Shown by the commands, also with `--dry-run`. Forward passes are run on tensors that have shapes and
no contents, and what autograd would keep for the backward pass is added up: that follows the
architecture by itself, where a formula would have to be kept in step with it. What two images keep
beyond one is an image's; the rest, bfloat16 copies of weights above all, is there once.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from model.config import GeneratorConfig, TokenizerConfig
from model.generator import Generator
from model.tokenizer import Tokenizer
from training.generator_stage import generator_loss
from training.mixed_precision import Precision, autocast
from training.recomputation import recompute_blocks
from training.trainer_config import TrainerConfig

FLOAT_BYTES = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a run needs at once, part by part."""

    num_parameters: int
    weights: int
    gradients: int
    optimiser: int  # AdamW's two averages
    average: int  # of the weights
    activations: int  # of one micro-batch
    num_trained: int
    saved: int  # weights in a checkpoint: all, or those that are trained where adapters are
    measured: int = 0  # of a sharded model: the whole copy that is measured

    @property
    def total(self) -> int:
        return sum(self._parts().values())

    @property
    def checkpoint(self) -> int:
        """Bytes of one checkpoint."""
        return self.saved * (2 if self.average else 1) + self.optimiser

    def text(self) -> str:
        """Return the parts and their sum, for people."""
        listed = ", ".join(f"{name} {gigabytes(n)}" for name, n in self._parts().items() if n)
        some = self.num_trained < self.num_parameters
        trained = f", {self.num_trained:,} of them trained" if some else ""
        return (
            f"{gigabytes(self.total)} ({listed}), {self.num_parameters / 1e6:.1f} M parameters"
            + trained
        )

    def on_each_of(self, num_processes: int, training: TrainerConfig) -> "MemoryEstimate":
        """Return what one of `num_processes` needs: a part of the batch, and of a sharded model."""
        one = replace(self, activations=-(-self.activations // num_processes))
        if training.sharding == "none" or num_processes == 1:
            return one
        # Gradients of several parts of a batch are whole until the last one is added.
        parts = num_processes if training.micro_batches == 1 else 1
        return replace(
            one,
            weights=-(-self.weights // num_processes),
            gradients=-(-self.gradients // parts),
            optimiser=-(-self.optimiser // num_processes),
            average=-(-self.average // num_processes),
            measured=self.weights,
        )

    def _parts(self) -> dict[str, int]:
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimiser": self.optimiser,
            "weight average": self.average,
            "activations": self.activations,
            "whole copy to measure": self.measured,
        }


def estimate_generator(
    config: GeneratorConfig,
    training: TrainerConfig,
    narrow: Callable[[Generator], None] | None = None,
) -> MemoryEstimate:
    """Estimate a generator's training, after `narrow` has frozen what is not trained of it."""

    def run(generator: Generator, num_images: int) -> Tensor:
        shape = num_images, config.num_tokens, config.bits_per_token
        tokens = torch.zeros(shape, dtype=torch.uint8)
        class_ids = torch.zeros(num_images, dtype=torch.int64)
        return generator_loss(generator, tokens, class_ids, 1.0)

    with torch.device("meta"):
        generator = Generator(config)
        if narrow is not None:
            narrow(generator)
    return _estimate(generator, run, training)


def estimate_tokenizer(config: TokenizerConfig, training: TrainerConfig) -> MemoryEstimate:
    """Estimate a tokenizer's training, without the networks of perceptual losses.

    SigLIP2 reads the contents of a tensor, which these have not: a transformer of its sizes stands
    for it, and its frozen original is added, which is weights and nothing else.
    """

    def run(tokenizer: Tokenizer, num_images: int) -> Tensor:
        pixels = torch.zeros(num_images, 3, config.image_size, config.image_size)
        reconstruction: Tensor = tokenizer(pixels).reconstruction
        return reconstruction.square().mean()

    with torch.device("meta"):
        tokenizer = Tokenizer(replace(config, encoder_kind="vit"))
    assert tokenizer.encoder is not None
    estimate = _estimate(tokenizer, run, training)
    if config.encoder_kind == "vit":
        return estimate
    frozen = sum(value.numel() for value in tokenizer.encoder.parameters())
    return replace(
        estimate,
        num_parameters=estimate.num_parameters + frozen,
        weights=estimate.weights + FLOAT_BYTES * frozen,
        saved=estimate.saved + FLOAT_BYTES * frozen,
    )


Model = TypeVar("Model", bound=nn.Module)
Run = Callable[[Model, int], Tensor]  # the model and a number of images -> their loss


def _estimate(model: Model, run: Run[Model], training: TrainerConfig) -> MemoryEstimate:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device="cpu")
        if training.recompute:
            recompute_blocks(model)
        one, two = (_kept_bytes(model, run, number, training.precision) for number in (1, 2))
    per_image, parameters = two - one, list(model.parameters())
    num_images = training.batch_size // training.micro_batches
    num_all = sum(value.numel() for value in parameters)
    num_trained = sum(value.numel() for value in parameters if value.requires_grad)
    return MemoryEstimate(
        num_parameters=num_all,
        weights=FLOAT_BYTES * num_all,
        gradients=FLOAT_BYTES * num_trained,
        optimiser=2 * FLOAT_BYTES * num_trained,
        average=FLOAT_BYTES * num_trained if training.average_decay is not None else 0,
        activations=one + per_image * (num_images - 1),
        num_trained=num_trained,
        saved=FLOAT_BYTES * sum(value.numel() for value in model.state_dict().values()),
    )


def _kept_bytes(model: Model, run: Run[Model], num_images: int, precision: Precision) -> int:
    """Return what autograd keeps of `num_images` for the backward pass, beside the weights."""
    kept: dict[StorageWeakRef, int] = {}

    def keep(value: Tensor) -> Tensor:
        kept[StorageWeakRef(value.untyped_storage())] = value.untyped_storage().nbytes()
        return value

    own = {StorageWeakRef(value.untyped_storage()) for value in model.state_dict().values()}
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
        autocast("cpu", precision),
    ):
        loss = run(model, num_images)
    assert loss.requires_grad  # and alive up to here, with all that it keeps
    return sum(num_bytes for storage, num_bytes in kept.items() if storage not in own)


def available_bytes(device: torch.device) -> int:
    """Return the memory of the device, or of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gigabytes(num_bytes: int) -> str:
    """Return bytes as 1.2 GB, or 34 MB or 5 kB where that says more."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.{1 if unit == 'GB' else 0}f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"
