"""Which examples are held out of training: a share of every class, the same ones every time."""

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError
from training.randomness import derive_seed


def stratified_split(
    class_ids: NDArray[np.int64], share: float, limit: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices to train on and those held out, both sorted.

    About `share` of every class is held out, at most `limit` in all, and one at least of a class
    that has two or more. Raises TrainingError if nothing is left on either side.
    """
    generator = np.random.default_rng(derive_seed(seed, "held-out"))
    share = min(share, limit / max(1, len(class_ids)))
    held_out: list[int] = []
    for class_id in np.unique(class_ids):
        members = np.flatnonzero(class_ids == class_id)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out += generator.permutation(members)[:count].tolist()
    chosen = np.sort(generator.permutation(np.array(held_out, dtype=np.int64))[:limit])
    train = np.setdiff1d(np.arange(len(class_ids)), chosen)
    if not len(chosen) or not len(train):
        raise TrainingError(
            f"{len(class_ids)} pictures are too few to hold some out: at least two of a class"
        )
    return train, chosen
