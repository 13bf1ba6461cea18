"""The cache: rows are apart, positions are per row."""

import torch

from model.kv_cache import KVCache
from tests.model.tiny import tiny_config

CONFIG = tiny_config()  # depth 2, 2 heads of 16, T = 4 + 15


def empty_cache() -> KVCache:
    """Return an empty cache of four rows."""
    return KVCache(CONFIG, 4, torch.device("cpu"), torch.float32)


def test_shape_and_zeros() -> None:
    """The cache is (depth, rows, H, T, d), all zero: what is masked must not be NaN."""
    cache = empty_cache()
    assert (2, 4, 2, 19, 16) == tuple(cache.keys.shape) == tuple(cache.values.shape)
    assert not cache.keys.any()
    assert not cache.values.any()


def test_prefix_is_written_to_its_rows_alone() -> None:
    """A prefix fills the first positions of the named rows of one layer and nothing else."""
    cache = empty_cache()
    keys, values = torch.full((2, 2, 4, 16), 1.0), torch.full((2, 2, 4, 16), 2.0)
    cache.write_prefix(1, torch.tensor([3, 0]), keys, values)
    assert (cache.keys[1, [0, 3], :, :4] == 1).all()
    assert (cache.values[1, [0, 3], :, :4] == 2).all()
    assert keys.numel() == cache.keys.count_nonzero()
    assert values.numel() == cache.values.count_nonzero()


def test_rows_append_at_their_own_positions() -> None:
    """Each row writes at its own index; the rows' whole keys and values come back in that order."""
    cache = empty_cache()
    rows, index = torch.tensor([2, 0]), torch.tensor([5, 18])
    new = torch.stack([torch.full((2, 1, 16), 7.0), torch.full((2, 1, 16), 8.0)])
    keys, values = cache.append(0, rows, index, new, 10 * new)
    assert (cache.keys[0, 2, :, 5] == 7).all()
    assert (cache.keys[0, 0, :, 18] == 8).all()
    assert new.numel() == cache.keys.count_nonzero() == cache.values.count_nonzero()
    assert torch.equal(cache.keys[0, rows], keys)
    assert torch.equal(10 * keys, values)
