"""What depends on a class alone, computed once, bounded in bytes, shared by all slots.

The engine keeps two of these: prefixes (keys, values and first latent) by class and first cell,
and, on the CPU, the modulations of a class's whole sequence.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

Key = TypeVar("Key")
Value = TypeVar("Value", bound=tuple[Tensor, ...])


class PrefixCache(Generic[Key, Value]):
    """Least recently used values, up to `max_bytes` of them; the newest is always kept."""

    def __init__(self, compute: Callable[[Key], Value], max_bytes: int) -> None:
        self._compute, self._max_bytes = compute, max_bytes
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key) -> Value:
        """Return the value of `key`, computing it if it is not held."""
        if key in self._values:
            self.hits += 1
            self._values.move_to_end(key)
            return self._values[key]
        self.misses += 1
        value = self._compute(key)
        self._values[key] = value
        self.num_bytes += _num_bytes(value)
        while self.num_bytes > self._max_bytes and len(self) > 1:
            self.evict()
        return value

    def evict(self) -> None:
        """Drop the value that was not used for longest; KeyError if there is none."""
        _, value = self._values.popitem(last=False)
        self.num_bytes -= _num_bytes(value)


def _num_bytes(value: tuple[Tensor, ...]) -> int:
    return sum(part.nbytes for part in value)
