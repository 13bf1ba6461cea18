"""The moving average of weights."""

import pytest
import torch
from torch import nn

from training.weight_average import WeightAverage


@pytest.mark.parametrize(
    ("num_updates", "decay"), [(0, 0.1), (1, 2 / 11), (10, 0.55), (10**6, 0.999)]
)
def test_decay_grows_to_its_limit(num_updates: int, decay: float) -> None:
    """The n-th update, from 0, keeps min(limit, (1 + n)/(10 + n)) of the average."""
    average = WeightAverage(nn.Linear(1, 1), max_decay=0.999)
    average.num_updates = num_updates
    assert decay == pytest.approx(average.decay)


def test_update_mixes_parameters_and_copies_buffers() -> None:
    """The average moves by 1 - decay; the model is left alone; buffers are as in the model."""
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, max_decay=0.999)
    nn.init.constant_(model.weight, 11.0)
    model.get_buffer("running_mean").copy_(torch.tensor([3.0, 4.0]))
    average.update(model)
    assert [10.0, 10.0] == pytest.approx(
        average.module.get_parameter("weight").tolist()
    )  # 0.1 · 1 + 0.9 · 11
    assert [11.0, 11.0] == model.weight.tolist()
    assert [3.0, 4.0] == average.module.get_buffer("running_mean").tolist()


def test_average_is_for_evaluation() -> None:
    """The averaged module is in evaluation mode and has no gradients."""
    average = WeightAverage(nn.Linear(2, 2).train(), max_decay=0.9)
    assert not average.module.training
    assert not any(p.requires_grad for p in average.module.parameters())
