"""How much is computed at once: half as much after memory ran out, and more again later.

One for the slots of a step, one for the images of a decode. What took the memory is often gone
soon, a neighbour on the GPU or a rare shape; but a failed attempt costs the captured graphs and
the shared prefixes, so memory that is too small for good is tried ever more rarely. The wait
doubles when what had grown fails before it has lasted as long, and is the first again otherwise.
"""

PATIENCE = 1000  # calls without a failure before twice as much is tried
MAX_PATIENCE = 64 * PATIENCE


class BatchLimit:
    """What may be computed at once, of at most so much."""

    def __init__(self, most: int) -> None:
        self._most = self.count = most
        self.num_changes = 0
        self._patience, self._num_calm, self._has_grown = PATIENCE, 0, False

    def halve(self, tried: int) -> None:
        """Note that `tried` at once was too much."""
        self.count, self._num_calm = (tried + 1) // 2, 0
        self.num_changes += 1
        if self._has_grown:
            self._patience = min(2 * self._patience, MAX_PATIENCE)
            self._has_grown = False

    def grow(self) -> None:
        """Note a call without a failure; after many of them twice as much is tried."""
        if self.count == self._most and not self._has_grown:
            return
        self._num_calm += 1
        if self._num_calm < self._patience:
            return
        if self._has_grown:  # and not in vain
            self._patience = PATIENCE
        self._num_calm, self._has_grown = 0, self.count < self._most
        if self._has_grown:
            self.count = min(2 * self.count, self._most)
            self.num_changes += 1
