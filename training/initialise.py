"""How weights start, where the architecture's own construction does not say.

Called once before a stage's first step; loading a checkpoint never comes here. Source: DiT,
arXiv 2212.09748 §3.2 (adaLN-zero), and the published training code.
"""

from torch import nn

from model.generator import Generator
from model.image_encoder import VitEncoder
from model.masked_bit_head import HeadBlock, MaskedBitHead
from model.quantizer import SHIFT
from model.tokenizer import Tokenizer
from model.transformer import Block

INITIAL_STD = 0.02


def initialise_generator(generator: Generator) -> None:
    """Draw matrices from a truncated normal; let every block start as the identity.

    So is a head's output layer: linear and bit heads start near ln 2 a bit, not at it.
    """
    for module in generator.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
            nn.init.zeros_(module.bias)
    for linear in modulations(generator):
        nn.init.zeros_(linear.weight)


def modulations(module: nn.Module) -> list[nn.Linear]:
    """Return the adaLN projections inside `module`, in its own order."""
    found = []
    for part in module.modules():
        if isinstance(part, Block | HeadBlock):
            found.append(part.modulation)
        elif isinstance(part, MaskedBitHead):
            found.append(part.final_modulation)
    return found


def initialise_tokenizer(tokenizer: Tokenizer) -> None:
    """Draw the vision transformers' matrices, and put the quantizer's threshold at zero.

    The published formula rounds at z = -3.8. Left there, every bit starts as 1 with hardly any
    gradient, and most of a short run is spent on finding the threshold. SigLIP2 is left as it is:
    its frozen half and its trained one have to start alike.
    """
    encoder = tokenizer.encoder if isinstance(tokenizer.encoder, VitEncoder) else None
    for part in (encoder, tokenizer.decoder):
        for module in part.modules() if part is not None else ():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
                nn.init.zeros_(module.bias)
    nn.init.constant_(tokenizer.quantizer.in_proj.bias, -SHIFT)
