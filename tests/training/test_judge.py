"""The judge."""

import torch

from training import digits_data
from training.judge import Judge, train_judge


def test_judge_reads_digits_that_it_has_not_seen() -> None:
    """Fitted to 540 held-out digits, it names 98 of 100 training digits; and it is the same
    judge every time."""
    data = digits_data.load(32)
    judge, again = train_judge(data.held_out, 10), train_judge(data.held_out, 10)
    with torch.no_grad():
        correct = judge(data.train.pixels).argmax(dim=1) == data.train.class_ids
    assert 0.98 < correct.float().mean()
    assert torch.equal(judge.classify.weight, again.classify.weight)


def test_judge_takes_any_image_size() -> None:
    """Features depend on the picture, not on its number of pixels."""
    judge = Judge(10).eval()
    small = digits_data.load(32).held_out.pixels[:4]
    large = torch.nn.functional.interpolate(small, scale_factor=2, mode="nearest")
    assert torch.allclose(judge.features(small), judge.features(large), atol=1e-5)
