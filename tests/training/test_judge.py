"""The judge."""

import torch

from training import digits_data
from training.judge import Judge, train_judge


def test_judge_reads_digits_that_it_has_not_seen() -> None:
    """Fitted to 540 held-out digits, it names 98 of 100 training digits."""
    data = digits_data.load(32)
    judge = train_judge(data.held_out, 10)
    with torch.no_grad():
        correct = judge(data.train.pixels).argmax(dim=1) == data.train.class_ids
    assert 0.98 < correct.float().mean()


def test_judge_is_the_same_every_time() -> None:
    """The same images and seed give the same judge, another seed another one."""
    images = digits_data.load(32).held_out
    judges = [train_judge(images, 10, num_steps=3, seed=seed) for seed in (0, 0, 1)]
    weights = [judge.classify.weight for judge in judges]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_judge_takes_any_image_size() -> None:
    """Features depend on the picture, not on its number of pixels."""
    judge = Judge(10).eval()
    small = digits_data.load(32).held_out.pixels[:4]
    large = torch.nn.functional.interpolate(small, scale_factor=2, mode="nearest")
    assert torch.allclose(judge.features(small), judge.features(large), atol=1e-5)
