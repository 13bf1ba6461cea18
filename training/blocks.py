"""Where a model's transformer blocks are: the units of recomputation, compilation and sharding.

A block is large, has many equals, and is called from one place, which is what all three ask for.
"""

from torch import nn

from model.image_encoder import Siglip2Encoder
from model.layers import VitBlock
from model.masked_bit_head import HeadBlock
from model.transformer import Block


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of trunk, head, encoder and decoder inside `model`, in their order."""
    blocks: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, Block | HeadBlock | VitBlock):
            blocks.append(module)
        elif isinstance(module, Siglip2Encoder):
            blocks += [*module.frozen.encoder.layers, *module.trained.layers]
    return blocks
