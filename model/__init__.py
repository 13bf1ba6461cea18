"""BAR, the masked Bit AutoRegressive image generator (arXiv 2602.09024), in plain PyTorch.

Dimension letters used in every shape comment of this package:

    B  batch            S  generated tokens per image (positions of the autoregression)
    P  prefix length    T  sequence length, P + S - 1 (the last token is never fed back)
    D  trunk width      H  attention heads      d  head width, D / H
    k  bits per token   W  head width           R  unmasking rounds of one token
    C  number of classes; class id C is "no class", used for guidance and label dropout
    g  latent cells per image side              L  latent cells, g * g

This file imports nothing, so that `import model.config` costs no more than that module.
"""
