"""Published names: each key of the published files has its place here, and the way back."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from model.checkpoint import check_fit, shapes_of
from model.config import PRESETS
from model.errors import CheckpointError
from model.generator import Generator
from model.published import (
    GENERATOR_NAMES,
    TOKENIZER_NAMES,
    Table,
    our_name,
    published_name,
    rename,
)
from model.tokenizer import Tokenizer

STATE_DICTS = Path(__file__).parents[1] / "golden" / "data" / "state_dicts"
PUBLISHED_GENERATORS = {
    "bar-b-patch4": "bar_b_patch4",
    "bar-b-patch2": "bar_b_patch2",
    "bar-b": "bar_b",
    "bar-l": "bar_l",
    "bar-l-res512": "bar_l_res512",
}
PUBLISHED_TOKENIZERS = {"bar-b": "bar_fsq_16bits", "bar-l-res512": "bar_fsq_10bits_res512"}


def _account(file: str, table: Table, module: nn.Module) -> tuple[int, int]:
    """Return how many parameters are published and how many are ours, once every name fits."""
    stored = json.loads((STATE_DICTS / f"{file}.json").read_text("utf-8"))
    shapes = {name: tuple(shape) for name, shape in stored["tensors"].items()}
    renamed = rename(shapes, table)
    ours = shapes_of(module.state_dict())
    check_fit(renamed.state, ours, file, unknown=renamed.unknown)
    pooling = [s for name, s in renamed.unused.items() if name.startswith("encoder.siglip.head.")]
    return stored["parameters"], sum(torch.Size(s).numel() for s in (*ours.values(), *pooling))


@pytest.mark.parametrize("name", PUBLISHED_GENERATORS)
def test_every_key_of_a_published_generator_has_its_place(name: str) -> None:
    """Names and shapes of the file are those of the preset's module, and so is their sum."""
    with torch.device("meta"):
        module = Generator(PRESETS[name].generator)
    published, ours = _account(PUBLISHED_GENERATORS[name], GENERATOR_NAMES, module)
    assert published == ours


@pytest.mark.parametrize("name", PUBLISHED_TOKENIZERS)
def test_every_key_of_a_published_tokenizer_has_its_place(name: str) -> None:
    """The same, encoder included; only SigLIP2's pooling head is counted but not kept."""
    with torch.device("meta"):
        module = Tokenizer(PRESETS[name].tokenizer)
    published, ours = _account(PUBLISHED_TOKENIZERS[name], TOKENIZER_NAMES, module)
    assert published == ours


@pytest.mark.parametrize(
    "table", [GENERATOR_NAMES, TOKENIZER_NAMES], ids=["generator", "tokenizer"]
)
def test_names_go_both_ways(table: Table) -> None:
    """Each row translates to its other column and back, for a block's number above nine too."""
    for ours, published in table:
        name = f"{ours}.weight".replace("#", "12")
        assert published_name(name, table) == f"{published}.weight".replace("#", "12")
        assert our_name(published_name(name, table), table) == name


def test_a_name_matches_whole_words_only() -> None:
    """A row does not take a name that merely begins with the same letters."""
    with pytest.raises(KeyError, match="norms"):
        our_name("norms.weight", GENERATOR_NAMES)
    with pytest.raises(KeyError, match="trunk_norm"):
        published_name("trunk_norm.weight", GENERATOR_NAMES)


def test_renaming_sorts_what_it_cannot_place() -> None:
    """Names on the list of unused ones, and unknown ones as they stand in the file."""
    renamed = rename(
        {"module.cls_token": 1, "blocks.3.attn.rope.freqs_cos": 2, "module.surprise": 3},
        GENERATOR_NAMES,
    )
    assert renamed.state == {"trunk.cls_token": 1}
    assert renamed.unused == {"blocks.3.attn.rope.freqs_cos": 2}
    assert renamed.unknown == ["module.surprise"]
    with pytest.raises(CheckpointError, match="holds cls_token twice"):
        rename({"cls_token": 1, "_orig_mod.cls_token": 2}, GENERATOR_NAMES)
