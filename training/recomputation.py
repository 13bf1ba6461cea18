"""Transformer blocks that forget what they computed inside, and compute it again for gradients.

Switched on by `training.recompute`: about a third more arithmetic, and activations of one block
instead of all. Dropout draws the same numbers the second time, so results do not change.
"""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from model.layers import VitBlock
from model.masked_bit_head import HeadBlock
from model.transformer import Block


def recompute_blocks(model: nn.Module) -> None:
    """Let every transformer and head block inside `model` keep its input alone."""
    for module in model.modules():
        if isinstance(module, Block | HeadBlock | VitBlock):
            again = partial(checkpoint, module.forward, use_reentrant=False)
            module.forward = again  # type: ignore[method-assign]
