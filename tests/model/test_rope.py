"""Rotary tables and the rotation of pairs."""

import pytest
import torch

from model.config import GeneratorConfig
from model.rope import rotary_table, rotate
from tests.model.tiny import tiny_config


@pytest.mark.parametrize("config", [tiny_config(), tiny_config(2), tiny_config(class_repeat=7)])
def test_prefix_is_not_rotated(config: GeneratorConfig) -> None:
    """The first P rows have cosine 1 and sine 0; the table is P + S rows of float32."""
    cos, sin = rotary_table(config)
    assert (config.prefix_len + config.num_tokens, config.head_dim) == tuple(cos.shape)
    assert torch.float32 == cos.dtype == sin.dtype
    assert (cos[: config.prefix_len] == 1).all()
    assert (sin[: config.prefix_len] == 0).all()


def test_angles_of_a_cell() -> None:
    """Cell (row, column) turns the first half of the channels by row·f, the second by column·f,
    with f_j = 10000^(-2j/(d/2)) for each pair."""
    config = tiny_config()  # d = 16: four frequencies
    cos, sin = rotary_table(config)
    row, column = 2, 3
    f = [10_000 ** (-2 * j / 8) for j in range(4)]
    angles = torch.tensor([n * f[j] for n in (row, column) for j in range(4) for _ in range(2)])
    cell = config.prefix_len + 4 * row + column
    torch.testing.assert_close(cos[cell], angles.cos())
    torch.testing.assert_close(sin[cell], angles.sin())


def test_rotation_is_complex_multiplication() -> None:
    """Neighbouring channels are real and imaginary part of a number that turns by the angle."""
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angles = torch.linspace(0, 3, 20, dtype=torch.float64).reshape(5, 4)
    turned = torch.view_as_complex(x.reshape(2, 3, 5, 4, 2)) * torch.polar(
        torch.ones_like(angles), angles
    )
    pairs = angles.repeat_interleave(2, dim=-1)
    expected = torch.view_as_real(turned).flatten(-2)
    torch.testing.assert_close(rotate(x, pairs.cos(), pairs.sin()), expected)


def test_scores_depend_on_the_distance_alone() -> None:
    """Moving query and key by the same rows and columns leaves their product as it is."""
    config = tiny_config()
    cos, sin = (table.double() for table in rotary_table(config))
    q, k = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def score(query_cell: int, key_cell: int) -> float:
        own, other = config.prefix_len + query_cell, config.prefix_len + key_cell
        return float(rotate(q, cos[own], sin[own]) @ rotate(k, cos[other], sin[other]))

    assert score(5, 0) == pytest.approx(score(10, 5), rel=1e-5)
    assert score(5, 0) != pytest.approx(score(5, 1), rel=1e-2)


def test_rotation_is_computed_wide() -> None:
    """A bfloat16 input is turned in float32 and rounded once."""
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).bfloat16()
    angle = torch.full((64,), 1.234)
    exact = rotate(x.double(), angle.cos().double(), angle.sin().double())
    assert torch.equal(exact.bfloat16(), rotate(x, angle.cos(), angle.sin()))


def test_table_is_on_the_cpu_whatever_the_default_device() -> None:
    """A model built on the meta device still has real angles."""
    with torch.device("meta"):
        cos, _ = rotary_table(tiny_config())
    assert "cpu" == cos.device.type
