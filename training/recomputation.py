"""Transformer blocks that forget what they computed inside, and compute it again for gradients.

Switched on by `training.recompute`: about a third more arithmetic, and activations of one block
instead of all. Dropout draws the same numbers the second time, so results do not change.
"""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from training.blocks import transformer_blocks


def recompute_blocks(model: nn.Module) -> None:
    """Let every transformer and head block inside `model` keep its input alone."""
    for block in transformer_blocks(model):
        again = partial(checkpoint, block.forward, use_reentrant=False)
        block.forward = again
