"""What the generator's stage trains and measures."""

import pytest
import torch
from torch import Tensor

from tests.model.tiny import tiny_config
from tests.training.tiny_runs import generator_stage
from training.generator_stage import GeneratorLossConfig, generator_loss
from training.order_annealing import OrderAnnealing


class Recording(torch.nn.Module):
    """Stands for a generator and keeps what its loss was given."""

    config = tiny_config()

    def loss(
        self, bits: Tensor, class_ids: Tensor, order: Tensor, mask: Tensor, mask_ratio: Tensor
    ) -> Tensor:
        self.given = bits, class_ids, order, mask, mask_ratio
        return bits.float().mean()


def test_bits_arrive_in_generation_order() -> None:
    """The j-th token handed to the generator is the one at the j-th cell of the order."""
    recording, tokens = Recording(), torch.arange(2 * 9).reshape(2, 9, 1)
    generator_loss(recording, tokens, torch.zeros(2), random_share=1.0)  # type: ignore[arg-type]
    bits, _, order, mask, ratio = recording.given
    for image in range(2):
        assert [int(tokens[image, cell]) for cell in order[image]] == bits[image, :, 0].tolist()
    assert not torch.equal(order[0], order[1])
    assert (2, 9, 1) == tuple(mask.shape)
    assert (2, 9) == tuple(ratio.shape)


def test_share_of_random_orders_follows_the_step() -> None:
    """Between start 2 and end 10, step 6 trains on half random orders."""
    stage = generator_stage()
    examples = stage.fetch(torch.arange(4), 0)
    shares = [stage.loss(examples, step)[1]["random_share"] for step in (0, 6, 11)]
    assert [1.0, 0.5, 0.0] == shares


def test_held_out_loss_starts_at_one_bit_per_bit() -> None:
    """Before training, each bit costs ln 2, and the same masks give the same number."""
    stage = generator_stage()
    model = stage.model.eval()
    losses = []
    for _ in range(2):
        torch.manual_seed(5)
        losses.append(stage.validate(model)["bit_loss"])
    assert losses[0] == losses[1]
    assert 0.693 == pytest.approx(losses[0], abs=0.02)


def test_class_dropout_must_leave_classes() -> None:
    """A dropout of 1 would train no class at all."""
    with pytest.raises(ValueError, match=r"class_dropout must be in \[0, 1\), got 1\.0"):
        GeneratorLossConfig(order_annealing=OrderAnnealing(start=-1, end=-1), class_dropout=1.0)
