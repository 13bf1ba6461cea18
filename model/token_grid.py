"""Between the tokenizer's grid of latent cells and the generator's sequence of tokens.

A token is a patch of p × p cells, row-major, each with its own bits; a sequence is the tokens in
the order in which they are generated. Training goes one way, sampling the other.
"""

from torch import Tensor


def cells_to_tokens(cells: Tensor, patch_size: int) -> Tensor:
    """(B, L, bits_per_latent) raster cells → (B, S, k) raster tokens."""
    batch, num_cells, bits = cells.shape
    side = round(num_cells**0.5) // patch_size
    grid = cells.reshape(batch, side, patch_size, side, patch_size, bits)
    return grid.transpose(2, 3).reshape(batch, side * side, patch_size**2 * bits)


def tokens_to_cells(tokens: Tensor, patch_size: int) -> Tensor:
    """(B, S, k) raster tokens → (B, L, bits_per_latent) raster cells."""
    batch, num_tokens, bits = tokens.shape
    side = round(num_tokens**0.5)
    grid = tokens.reshape(batch, side, side, patch_size, patch_size, bits // patch_size**2)
    return grid.transpose(2, 3).reshape(batch, num_tokens * patch_size**2, -1)


def to_generation_order(tokens: Tensor, order: Tensor) -> Tensor:
    """Arrange raster tokens (B, S, k) as generated; order (B, S) is the cell generated j-th."""
    return tokens.gather(1, order[..., None].expand_as(tokens))


def to_raster_order(tokens: Tensor, order: Tensor) -> Tensor:
    """Undo `to_generation_order`."""
    return tokens.scatter(1, order[..., None].expand_as(tokens), tokens)
