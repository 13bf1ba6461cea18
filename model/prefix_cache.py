"""What depends on a class alone, computed once, bounded in bytes, shared by all slots.

The engine keeps two of these: prefixes (keys, values and first latent) by class and first cell,
and, on the CPU, the modulations of a class's whole sequence.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

# What keys that hardly come again keep of a full room.
RARE_SHARE = 1 / 8

Key = TypeVar("Key")
Value = TypeVar("Value", bound=tuple[Tensor, ...])


class PrefixCache(Generic[Key, Value]):
    """Least recently used values, up to `max_bytes` of them; the newest is always kept.

    Once it is full, keys that `is_rare` have a share of it, and the others the rest: images of
    random order, each with one of hundreds of first cells, do not crowd out the classes of others.
    """

    def __init__(
        self,
        compute: Callable[[Key], Value],
        max_bytes: int,
        is_rare: Callable[[Key], bool] | None = None,
    ) -> None:
        self._compute, self._is_rare = compute, is_rare
        self._max_bytes = max_bytes
        self._rare: _Shelf[Key, Value] = _Shelf()
        self._common: _Shelf[Key, Value] = _Shelf()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._rare.values) + len(self._common.values)

    @property
    def num_bytes(self) -> int:
        """What the values held take."""
        return self._rare.num_bytes + self._common.num_bytes

    def get(self, key: Key) -> Value:
        """Return the value of `key`, computing it if it is not held."""
        shelf = self._rare if self._is_rare and self._is_rare(key) else self._common
        if key in shelf.values:
            self.hits += 1
            shelf.values.move_to_end(key)
            return shelf.values[key]
        self.misses += 1
        value = self._compute(key)
        shelf.put(key, value)
        while self.num_bytes > self._max_bytes and len(self) > 1:
            self._shelf_to_clear(shelf).evict()
        return value

    def evict(self) -> None:
        """Drop the value that was not used for longest, rare ones first; KeyError if there is
        none."""
        (self._rare if self._rare.values else self._common).evict()

    def _shelf_to_clear(self, newest: "_Shelf[Key, Value]") -> "_Shelf[Key, Value]":
        """Return the shelf that gives up a value; never the last one of the `newest` shelf."""
        shelves = self._common, self._rare
        if self._rare.num_bytes > self._max_bytes * RARE_SHARE:
            shelves = self._rare, self._common
        first, second = shelves
        return first if len(first.values) > (first is newest) else second


class _Shelf(Generic[Key, Value]):
    """Values in the order of their last use."""

    def __init__(self) -> None:
        self.values: OrderedDict[Key, Value] = OrderedDict()
        self.num_bytes = 0

    def put(self, key: Key, value: Value) -> None:
        self.values[key] = value
        self.num_bytes += _num_bytes(value)

    def evict(self) -> None:
        _, value = self.values.popitem(last=False)
        self.num_bytes -= _num_bytes(value)


def _num_bytes(value: tuple[Tensor, ...]) -> int:
    return sum(part.nbytes for part in value)
