"""Between cells and tokens, and between raster and generation order."""

import pytest
import torch

from model.sampling import random_order
from model.token_grid import cells_to_tokens, to_generation_order, to_raster_order, tokens_to_cells


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_cells_and_tokens_are_inverse(patch_size: int) -> None:
    """Cells become tokens of patch² cells and come back unchanged."""
    cells = torch.arange(2 * 16 * 3).reshape(2, 16, 3)
    tokens = cells_to_tokens(cells, patch_size)
    assert (2, 16 // patch_size**2, 3 * patch_size**2) == tuple(tokens.shape)
    assert torch.equal(cells, tokens_to_cells(tokens, patch_size))


def test_a_token_is_a_patch_read_row_by_row() -> None:
    """Token (0, 1) of a 4×4 grid with patch 2 holds cells 2, 3, 6, 7, each with its own bits."""
    cells = torch.arange(16)[None, :, None] * 10 + torch.arange(2)
    tokens = cells_to_tokens(cells, 2)
    assert [20, 21, 30, 31, 60, 61, 70, 71] == tokens[0, 1].tolist()


def test_generation_order_lists_cells_as_drawn() -> None:
    """The j-th of a sequence is the raster token that the order names j-th."""
    tokens = torch.tensor([[[10], [11], [12]], [[20], [21], [22]]])
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    generated = to_generation_order(tokens, order)
    assert [[12, 10, 11], [21, 22, 20]] == generated[..., 0].tolist()
    assert torch.equal(tokens, to_raster_order(generated, order))


def test_raster_order_undoes_random_orders() -> None:
    """Rows with different orders all come back to raster."""
    order = torch.stack([random_order(seed, 16) for seed in range(5)])
    tokens = torch.arange(5 * 16 * 4).reshape(5, 16, 4)
    assert torch.equal(tokens, to_raster_order(to_generation_order(tokens, order), order))
