"""How well the hidden bits of held-out images are predicted: in all, and by how many are hidden.

Filled by the generator's stage at each measurement. A head that is good at the last bits of a token
may be poor at the first, and one figure would hide it: hence the quarters.
"""

import torch
from torch import Tensor

NUM_BINS = 4


class BitTally:
    """Sums over tokens of `num_bits` bits, kept apart by how many of them were hidden."""

    def __init__(self, num_bits: int) -> None:
        self.num_bits = num_bits
        # hidden bits, their nats, those guessed right; a column for each number hidden
        self._sums = torch.zeros(3, num_bits + 1, dtype=torch.float64)

    def add(self, num_hidden: Tensor, nats: Tensor, num_right: Tensor) -> None:
        """Count tokens: how many bits were hidden, their cross entropy, and how many were right;
        all of one shape."""
        values = torch.stack([part.flatten().double() for part in (num_hidden, nats, num_right)])
        self._sums.index_add_(1, num_hidden.flatten().cpu(), values.detach().cpu())

    def metrics(self) -> dict[str, float]:
        """Return the nats of a token, the share of hidden bits that were guessed right, and, where
        tokens were hidden to different degrees, loss and accuracy by share of hidden bits."""
        degrees = torch.arange(1, self.num_bits + 1)
        hidden, nats, right = self._sums[:, 1:]
        counts = hidden / degrees  # of tokens
        result = {
            "token_nats": ((self.num_bits / degrees * nats).sum() / counts.sum()).item(),
            "bit_accuracy": (right.sum() / hidden.sum()).item(),
        }
        if (counts > 0).sum() > 1:
            for index in range(NUM_BINS):
                result |= self._quarter(index)
        return result

    def _quarter(self, index: int) -> dict[str, float]:
        start, end = (self.num_bits * edge // NUM_BINS + 1 for edge in (index, index + 1))
        hidden, nats, right = self._sums[:, start:end].sum(1).tolist()
        if not hidden:
            return {}
        name = f"{100 * index // NUM_BINS}_{100 * (index + 1) // NUM_BINS}"
        return {
            f"bit_loss_{name}": nats / hidden,
            f"bit_accuracy_{name}": right / hidden,
        }
