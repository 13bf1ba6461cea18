"""From pixels to tokens."""

import torch

from model.token_grid import tokens_to_cells
from tests.model.tiny import tiny_tokenizer
from training.pretokenize import pretokenize


def test_tokens_hold_the_tokenizers_bits() -> None:
    """Tokens are the encoder's bits, patch by patch, whatever the batch size."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(dtype=torch.float32)
    pixels, class_ids = torch.rand(7, 3, 8, 8) * 2 - 1, torch.arange(7)
    images = pretokenize(tokenizer, pixels, class_ids, patch_size=2, batch_size=3)
    assert (7, 4, 16) == tuple(images.tokens.shape)
    assert torch.uint8 == images.tokens.dtype
    assert torch.equal(tokenizer.encode(pixels), tokens_to_cells(images.tokens, 2))
    assert torch.equal(class_ids, images.class_ids)
