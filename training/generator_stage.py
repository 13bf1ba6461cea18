"""Stage two: the generator learns to fill in hidden bits, token after token.

Driven by `trainer.py` on what `pretokenize.py` made. Held-out images are measured in raster order
with masks that are the same every time, so that figures move only when the model does: `bit_loss`
is what training minimises, each head's own; `token_nats` may be compared between heads.
Source: paper §3.3-3.4.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self, cast

import torch
from pydantic import model_validator
from torch import Tensor, nn

from model.config import ImageRequest, SamplingConfig
from model.generate import generate
from model.generator import Generator
from model.token_grid import to_generation_order
from model.tokenizer import Tokenizer
from training.masking import MaskDistribution, draw_bit_masks, draw_round_masks, drop_classes
from training.order_annealing import OrderAnnealing, draw_orders
from training.pictures import save_grid
from training.pretokenize import TokenData
from training.section import Section

NUM_MASK_DRAWS = 4  # of each held-out token
MAX_CLASSES_SHOWN = 10
IMAGES_PER_CLASS = 4


class GeneratorLossConfig(Section):
    """What varies from image to image in training."""

    order_annealing: OrderAnnealing
    class_dropout: float = 0.1
    mask_distribution: MaskDistribution = "logit_normal"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 <= self.class_dropout < 1:
            raise ValueError(f"class_dropout must be in [0, 1), got {self.class_dropout}")
        return self


class GeneratorStage:
    """Trains `model` on tokens; `tokenizer` and `sampling` serve the sample grids."""

    name = "generator"
    objective = "bit_loss"

    def __init__(
        self,
        model: Generator,
        images: TokenData,
        held_out: TokenData,
        config: GeneratorLossConfig,
        tokenizer: Tokenizer,
        sampling: SamplingConfig,
        held_out_batch: int = 1024,
    ) -> None:
        self.model = model
        self.images, self.held_out, self.config = images, held_out, config
        self.tokenizer, self.sampling = tokenizer, sampling
        self.num_examples = len(images)
        self.held_out_batch = held_out_batch

    def fetch(self, batch: Tensor, seed: int) -> tuple[Tensor, ...]:
        return self.images.fetch(batch, seed)

    def loss(self, examples: tuple[Tensor, ...], step: int) -> tuple[Tensor, dict[str, float]]:
        tokens, class_ids = self._moved(examples)
        class_ids = drop_classes(class_ids, self.model.config.null_class, self.config.class_dropout)
        random_share = self.config.order_annealing.random_share(step)
        loss = generator_loss(
            self.model, tokens, class_ids, random_share, self.config.mask_distribution
        )
        return loss, {"random_share": random_share}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure the mean loss of a bit, and what a token costs, on the held-out images."""
        generator = cast(Generator, model)
        loss = partial(generator_loss, generator, random_share=0.0)
        return {
            "bit_loss": self._held_out_mean(loss),
            "token_nats": self._held_out_mean(partial(token_nats, generator)),
        }

    def draw(self, model: nn.Module, path: Path) -> None:
        """Show the first classes with fixed seeds, one class a column."""
        num_classes = min(MAX_CLASSES_SHOWN, self.model.config.num_classes)
        requests = [
            ImageRequest(class_id=class_id, seed=seed, sampling=self.sampling)
            for seed in range(IMAGES_PER_CLASS)
            for class_id in range(num_classes)
        ]
        images = generate(cast(Generator, model), self.tokenizer, requests)
        save_grid(path, images, num_columns=num_classes)

    def _held_out_mean(self, measure: Callable[[Tensor, Tensor], Tensor]) -> float:
        num_draws, total = NUM_MASK_DRAWS if self.model.config.has_rounds else 1, 0.0
        for batch in torch.arange(len(self.held_out)).split(self.held_out_batch):
            tokens, class_ids = self._moved(self.held_out.fetch(batch, 0))
            values = torch.stack([measure(tokens, class_ids) for _ in range(num_draws)])
            total += len(batch) / len(self.held_out) * values.mean().item()
        return total

    def _moved(self, examples: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        device = next(self.model.parameters()).device
        tokens, class_ids = (part.to(device, non_blocking=True) for part in examples)
        return tokens, class_ids


def generator_loss(
    generator: Generator,
    tokens: Tensor,
    class_ids: Tensor,
    random_share: float,
    distribution: MaskDistribution = "logit_normal",
) -> Tensor:
    """Draw orders and masks for raster `tokens` (B, S, k), and return the generator's loss."""
    batch, num_tokens, num_bits = tokens.shape
    order = draw_orders(batch, num_tokens, random_share, tokens.device)
    if generator.config.has_rounds:
        mask, mask_ratio = draw_bit_masks(batch, num_tokens, num_bits, tokens.device, distribution)
    else:
        mask, mask_ratio = _all_hidden(tokens)
    return generator.loss(to_generation_order(tokens, order), class_ids, order, mask, mask_ratio)


def token_nats(generator: Generator, tokens: Tensor, class_ids: Tensor) -> Tensor:
    """Return the mean cross entropy of a whole token in raster order, in nats, a scalar.

    A masked-bit head gives a token a probability for each order in which its bits are drawn, one a
    round. This is the mean over orders, estimated from one round of one order for each token: it
    is never below the cross entropy of tokens that are drawn in a random order.
    """
    batch, num_tokens, num_bits = tokens.shape
    order = torch.arange(num_tokens, device=tokens.device).expand(batch, -1)
    if generator.config.has_rounds:
        mask, num_hidden = draw_round_masks(batch, num_tokens, num_bits, tokens.device)
        weight = num_bits / num_hidden  # all k rounds for the one, and one of its n hidden bits
    else:
        mask, weight = _all_hidden(tokens)  # one pass costs what it costs
    nats = generator.nats(tokens, class_ids, order, mask, mask.float().mean(-1))  # (B, S)
    return (weight * nats).mean()


def _all_hidden(tokens: Tensor) -> tuple[Tensor, Tensor]:
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return mask, torch.ones_like(mask[..., 0], dtype=torch.float32)
