"""Facts of the cache of what depends on a class alone."""

import pytest
import torch
from torch import Tensor

from model.prefix_cache import PrefixCache

VALUE_BYTES = 2 * 10 * 4  # two float32 tensors of ten


class Recorder:
    """Computes values, and notes for which keys."""

    def __init__(self) -> None:
        self.keys: list[int] = []

    def __call__(self, key: int) -> tuple[Tensor, ...]:
        self.keys.append(key)
        return torch.full((10,), float(key)), torch.full((10,), float(-key))


def test_a_value_is_computed_once() -> None:
    """The second request for a key gets the very same tensors."""
    compute = Recorder()
    cache = PrefixCache(compute, 10 * VALUE_BYTES)
    first, second = cache.get(3), cache.get(3)
    assert first is second
    assert 3 == first[0][0]
    assert ([3], 1, 1) == (compute.keys, cache.hits, cache.misses)


def test_the_least_recently_used_value_goes_first() -> None:
    """With room for two, a third value drops the one that was not asked for since."""
    compute = Recorder()
    cache = PrefixCache(compute, 2 * VALUE_BYTES)
    for key in (1, 2, 1, 3):
        cache.get(key)
    assert (2, 2 * VALUE_BYTES) == (len(cache), cache.num_bytes)
    cache.get(1)
    assert [1, 2, 3] == compute.keys
    cache.get(2)
    assert [1, 2, 3, 2] == compute.keys


def test_the_newest_value_is_kept_however_large() -> None:
    """A bound that no value fits still leaves one: the caller has it anyway."""
    cache = PrefixCache(Recorder(), 1)
    for key in range(3):
        cache.get(key)
    assert (1, VALUE_BYTES) == (len(cache), cache.num_bytes)


def test_rare_keys_crowd_out_nobody() -> None:
    """Of a full room they have an eighth, and the others the rest."""
    compute = Recorder()
    cache = PrefixCache(compute, 16 * VALUE_BYTES, is_rare=lambda key: key >= 100)
    common = list(range(14))
    for key in common:
        cache.get(key)
    for key in range(100, 200):
        cache.get(key)
    assert 16 == len(cache)
    compute.keys.clear()
    for key in (*common, 198, 199):
        cache.get(key)
    assert [] == compute.keys
    assert (16, 114) == (cache.hits, cache.misses)


def test_rare_keys_have_all_the_room_that_nobody_else_wants() -> None:
    """They give it up, down to their share, as others come; those do the same for them."""
    compute = Recorder()
    cache = PrefixCache(compute, 16 * VALUE_BYTES, is_rare=lambda key: key >= 100)

    def held(*keys: int) -> bool:
        before = len(compute.keys)
        for key in keys:
            cache.get(key)
        return before == len(compute.keys)

    held(*range(100, 117))
    assert held(*range(101, 117))  # all but the first
    held(*range(10))
    assert held(*range(10), *range(111, 117))
    held(*range(10, 30))
    assert held(*range(16, 30), 115, 116)
    cache = PrefixCache(compute, 16 * VALUE_BYTES, is_rare=lambda key: key >= 100)
    held(*range(16))
    held(100)
    assert held(*range(1, 16), 100)


@pytest.mark.parametrize("keys", [(100, 1), (1, 100), (1, 2, 100), (100, 101, 1)])
def test_the_newest_value_is_kept_whatever_it_is(keys: tuple[int, ...]) -> None:
    """Where the room is smaller than the share of its own, the others go."""
    compute = Recorder()
    cache = PrefixCache(compute, VALUE_BYTES, is_rare=lambda key: key >= 100)
    for key in (*keys, keys[-1]):
        cache.get(key)
    assert (list(keys), 1, VALUE_BYTES) == (compute.keys, len(cache), cache.num_bytes)


def test_rare_keys_go_first_where_memory_is_wanted() -> None:
    """Then the others, the longest unused first."""
    compute = Recorder()
    cache = PrefixCache(compute, 16 * VALUE_BYTES, is_rare=lambda key: key >= 100)
    for key in (100, 1, 2):
        cache.get(key)
    cache.evict()
    cache.evict()
    compute.keys.clear()
    for key in (2, 1, 100):
        cache.get(key)
    assert [1, 100] == compute.keys


def test_bytes_stay_within_the_bound() -> None:
    """However many keys come, the values held are no larger than the bound."""
    cache = PrefixCache(Recorder(), 5 * VALUE_BYTES)
    for key in range(100):
        cache.get(key % 17)
        assert len(cache) * VALUE_BYTES == cache.num_bytes <= 5 * VALUE_BYTES
    assert 100 == cache.hits + cache.misses


def test_values_can_be_evicted_by_hand() -> None:
    """Eviction takes the oldest, and raises KeyError when nothing is left."""
    compute = Recorder()
    cache = PrefixCache(compute, 10 * VALUE_BYTES)
    cache.get(1)
    cache.get(2)
    cache.evict()
    cache.get(2)
    assert [1, 2] == compute.keys
    cache.evict()
    assert (0, 0) == (len(cache), cache.num_bytes)
    with pytest.raises(KeyError):
        cache.evict()


def test_a_failed_computation_leaves_nothing_behind() -> None:
    """When computing raises, nothing is held and the next request computes again."""

    def compute(key: int) -> tuple[Tensor, ...]:
        attempts.append(key)
        if len(attempts) == 1:
            raise torch.OutOfMemoryError
        return (torch.zeros(1),)

    attempts: list[int] = []
    cache = PrefixCache(compute, 100)
    with pytest.raises(torch.OutOfMemoryError):
        cache.get(1)
    assert (0, 0) == (len(cache), cache.num_bytes)
    cache.get(1)
    assert ([1, 1], 4) == (attempts, cache.num_bytes)
