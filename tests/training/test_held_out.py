"""Which examples are held out."""

import numpy as np
import pytest

from training.errors import TrainingError
from training.held_out import stratified_split


def test_every_class_is_on_both_sides() -> None:
    """A fifth of each class is held out; nothing is on both sides, and nothing is lost."""
    class_ids = np.repeat([0, 1, 2], [50, 10, 5])
    train, held_out = stratified_split(class_ids, 0.2, 1000, seed=0)
    assert [10, 2, 1] == np.bincount(class_ids[held_out]).tolist()
    assert list(range(65)) == sorted([*train.tolist(), *held_out.tolist()])


def test_split_belongs_to_its_seed() -> None:
    """The same seed holds out the same pictures, another seed others."""
    class_ids = np.arange(100) % 4
    splits = [stratified_split(class_ids, 0.2, 1000, seed)[1].tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]


def test_limit_holds_for_all_classes_together() -> None:
    """No more than the limit is held out, and not only of the first classes."""
    class_ids = np.repeat(np.arange(20), 10)
    _, held_out = stratified_split(class_ids, 0.5, 12, seed=0)
    assert 12 == len(held_out)
    assert class_ids[held_out].max() > 12


def test_class_of_one_picture_is_trained_on() -> None:
    """A single picture of a class is not held out; if nothing can be, that is an error."""
    _, held_out = stratified_split(np.array([0, 0, 1]), 0.5, 10, seed=0)
    assert 1 == len(held_out)
    assert 2 not in held_out
    with pytest.raises(TrainingError, match="2 pictures are too few"):
        stratified_split(np.array([0, 1]), 0.5, 10, seed=0)
