"""What the generator's stage trains and measures."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
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


def test_held_out_bits_are_measured_by_how_many_are_hidden() -> None:
    """Before training every quarter of hidden bits costs ln 2 a bit and is guessed by chance, and a
    token of four bits costs four times that."""
    stage = generator_stage()
    torch.manual_seed(5)
    metrics = stage.validate(stage.model.eval())
    quarters = ("0_25", "25_50", "50_75", "75_100")
    for name in quarters:
        assert math.log(2) == pytest.approx(metrics[f"bit_loss_{name}"], abs=0.06)
        assert 0.2 < metrics[f"bit_accuracy_{name}"] < 0.8
    assert 4 * math.log(2) == pytest.approx(metrics["token_nats"], abs=0.15)
    assert 0.4 < metrics["bit_accuracy"] < 0.6


@pytest.mark.parametrize(("orders", "blocks"), [((2, 10), 2), ((-1, -1), 1)])
def test_samples_are_drawn_in_the_orders_that_are_trained(
    tmp_path: Path, orders: tuple[int, int], blocks: int
) -> None:
    """A sheet has a block in raster order, and one in random order unless raster alone is trained;
    the same weights draw the same sheet."""
    stage = generator_stage()
    annealing = OrderAnnealing(start=orders[0], end=orders[1])
    stage.config = GeneratorLossConfig(order_annealing=annealing)
    stage.class_names = ["a", "b", "c"]
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path in paths:
        stage.draw(stage.model.eval(), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    cell, text = 64 + 2, 2 * 22  # pixels of an image, and of a title with the names beneath
    with Image.open(paths[0]) as sheet:
        assert blocks * (text + 4 * cell + 2) == sheet.height


def test_class_dropout_must_leave_classes() -> None:
    """A dropout of 1 would train no class at all."""
    with pytest.raises(ValueError, match=r"class_dropout must be in \[0, 1\), got 1\.0"):
        GeneratorLossConfig(order_annealing=OrderAnnealing(start=-1, end=-1), class_dropout=1.0)
