"""The tables in docs/operations.md are those that the code makes, and count what they say."""

import pytest

from model.config import PRESETS
from service.settings import PREFIX, Settings
from tests.operations.document import PATH, TABLES
from tests.operations.sizing import CARDS_GB, footprint, num_bytes
from tests.written_tables import read_table


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_are_up_to_date(name: str) -> None:
    """The document holds each table as the code makes it now."""
    assert TABLES[name]() == read_table(PATH, name), "run `python -m tests.operations`"


def test_every_setting_is_in_the_reference() -> None:
    """The reference has one row for each setting."""
    rows = [line for line in read_table(PATH, "configuration").splitlines() if f"`{PREFIX}" in line]
    assert len(Settings.model_fields) == len(rows)
    for name, row in zip(Settings.model_fields, rows, strict=True):
        assert row.startswith(f"| `{PREFIX}{name.upper()}` |")


def test_a_slot_is_its_cache_and_little_more() -> None:
    """What is counted for a slot is what arithmetic gives for keys and values, and up to 2 % more.

    Two rows (with and without the class) of keys and values, two bytes each, at every layer and
    every position but the last token's, which nobody reads.
    """
    for name, preset in PRESETS.items():
        config = preset.generator
        positions = config.prefix_len + config.num_tokens - 1
        cache = 2 * 2 * 2 * config.depth * positions * config.width
        assert cache <= footprint(preset).slot <= 1.02 * cache + 20_000, name


def test_weights_are_those_of_the_published_models() -> None:
    """bar-b has 415 million parameters: loading takes four bytes for each, and the decoder's."""
    found = footprint(PRESETS["bar-b"])
    assert 4 * 415e6 < found.loading < 4 * (415e6 + 450e6)
    assert found.fixed < found.loading


def test_larger_cards_hold_more() -> None:
    """A larger card has more slots, a larger model fewer."""
    small, large = footprint(PRESETS["bar-b"]), footprint(PRESETS["bar-l-res512"])
    for footprints in (small, large):
        slots = [footprints.num_slots(card) for card in CARDS_GB]
        assert slots == sorted(slots)
    assert all(small.num_slots(card) > large.num_slots(card) for card in CARDS_GB)
    assert 0 == large.num_slots(8)


def test_storage_is_counted_once() -> None:
    """Views of one tensor, and a tensor that is held twice, are one piece of memory."""
    import torch

    whole = torch.zeros(10, dtype=torch.float32)
    assert 40 == num_bytes([whole, whole[:5], {"again": whole}])
