"""A generator's weights in one of other classes, or another grid."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from model.class_labels import ClassLabels
from model.generator import Generator
from tests.model.tiny import NUM_CLASSES, tiny_config, tiny_generator
from training.errors import TrainingError
from training.transplant import (
    CELL_TABLES,
    CLASS_TABLE,
    SEQUENCE_TABLE,
    ambiguous_classes,
    cell_rows,
    class_rows,
    fresh_names,
    known_classes,
    transplant,
)

NAMES = ["owl", "sea_eagle", "wren", "gull", "tern"]
OLD = ClassLabels.from_names(NAMES)


def test_known_classes_keep_what_the_model_knows() -> None:
    """A class is recognised by name, however written; "no class" and all else stay."""
    donor = tiny_generator(dtype=torch.float32)
    config = replace(tiny_config(), num_classes=3)
    torch.manual_seed(0)
    ours = transplant(donor, OLD, config, ["Sea Eagle", "heron", "owl"], dropout=0.1)
    theirs, table = donor.trunk.class_embed.weight, ours.trunk.class_embed.weight
    assert torch.equal(theirs[:3], table[:3])
    assert torch.equal(theirs[3 + 1], table[3])
    assert torch.equal(theirs[3 + 0], table[3 + 2])
    assert torch.equal(theirs[3 + NUM_CLASSES], table[3 + 3])
    kept = {name: value for name, value in ours.state_dict().items() if "class_embed" not in name}
    assert all(torch.equal(donor.state_dict()[name], value) for name, value in kept.items())


def test_classes_are_known_by_any_of_their_names() -> None:
    """Folders named by WordNet ids or synonyms are ImageNet's classes; a number is no index."""
    imagenet = ClassLabels.imagenet()
    ids = [str(label.wordnet_id) for label in imagenet]
    assert list(range(1000)) == known_classes(imagenet, ids)
    assert [0, 0, None, None] == known_classes(imagenet, ["Tinca_tinca", "tench", "7", "typeface"])
    table = torch.randn(3 + 1000 + 1, 8)
    assert torch.equal(table, class_rows(table, imagenet, ids))


def test_name_of_two_classes_is_new() -> None:
    """ImageNet's two cranes are told apart by WordNet id only: the name alone takes neither."""
    imagenet = ClassLabels.imagenet()
    assert [None, 134, 517] == known_classes(imagenet, ["crane", "n02012849", "n03126707"])
    found = ambiguous_classes(imagenet, ["crane", "tench", "maillot", "heron"])
    assert {"crane": [134, 517], "maillot": [638, 639]} == {
        name: [label.index for label in labels] for name, labels in found.items()
    }


def test_new_class_begins_in_the_middle_of_the_old_ones() -> None:
    """A name that is not known gets the mean of all rows and a little noise of its own."""
    table = torch.randn(3 + 5 + 1, 4000)
    torch.manual_seed(0)
    rows = class_rows(table, OLD, ["a", "b"])
    mean, spread = table[3:8].mean(0), table[3:8].std(0, unbiased=False)
    for row in rows[3:5]:
        noise = (row - mean) / spread
        assert 0.1 == pytest.approx(noise.std().item(), rel=0.1)
    assert not torch.equal(rows[3], rows[4])


def test_one_class_is_legal() -> None:
    """A model of a single class has that class and "no class"."""
    donor = tiny_generator(dtype=torch.float32)
    config = replace(tiny_config(), num_classes=1)
    table, old = (
        generator.trunk.class_embed.weight
        for generator in (transplant(donor, OLD, config, ["wren"], 0.0), donor)
    )
    assert 3 + 1 + 1 == len(table)
    assert torch.equal(old[3 + 2], table[3])
    assert torch.equal(old[-1], table[-1])


def test_other_grid_stretches_the_position_tables() -> None:
    """Positions between old ones lie between their values; the model still computes."""
    old = tiny_config()
    new = replace(old, grid_size=8)
    ramp = torch.zeros(1, old.num_tokens + 128, 1)
    cells = torch.arange(4.0).repeat(4)  # the column of each cell
    ramp[0, old.prefix_len : old.prefix_len + 16, 0] = cells
    rows = cell_rows(ramp, old, new)[0, new.prefix_len : new.prefix_len + 64, 0].reshape(8, 8)
    assert (rows.diff(dim=1) > 0).all()
    assert rows.diff(dim=0).abs().max() < 1e-5
    donor = tiny_generator(dtype=torch.float32)
    larger = transplant(donor, OLD, new, NAMES, 0.0)
    assert torch.equal(Generator(new).trunk.cos, larger.trunk.cos)
    assert len(donor.trunk.cos) < len(larger.trunk.cos)
    prefix = slice(0, old.prefix_len)
    for name in (*CELL_TABLES, SEQUENCE_TABLE):
        ours, theirs = larger.get_parameter(name), donor.get_parameter(name)
        assert torch.equal(theirs[:, prefix], ours[:, prefix])
    order = torch.arange(64)[None]
    latents = larger.trunk(torch.zeros(1, 64, 4, dtype=torch.int64), torch.zeros(1).long(), order)
    assert (1, 64, 32) == tuple(latents.shape)
    assert latents.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits_per_latent": 8}, r"bits_per_latent 8 \(was 4\): give --reinitialise to let trunk"),
        ({"patch_size": 2}, r"patch_size 2 \(was 1\): give --reinitialise"),
        ({"head_depth": 1}, r"head_depth 1 \(was 2\): give --reinitialise to let head\.\* begin"),
    ],
)
def test_other_bits_are_refused_unless_asked_for(changes: dict[str, Any], message: str) -> None:
    """What would change the meaning of bits, or the head, is an error with both numbers."""
    config = replace(tiny_config(), **changes)
    with pytest.raises(TrainingError, match=message):
        transplant(tiny_generator(dtype=torch.float32), OLD, config, NAMES, 0.0)


def test_other_trunk_is_always_refused() -> None:
    """No request makes another depth or width of the same weights."""
    config = replace(tiny_config(), bits_per_latent=8, depth=3, width=64)
    message = r"keeps the trunk .* got width 64 \(was 32\), depth 3 \(was 2\): train"
    with pytest.raises(TrainingError, match=message):
        transplant(tiny_generator(dtype=torch.float32), OLD, config, NAMES, 0.0, reinitialise=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"bits_per_latent": 8},
        {"patch_size": 2},
        {"head_width": 64, "head_depth": 1},
        {"head": "bit", "head_depth": 0},
    ],
)
def test_layers_begin_anew_on_request(changes: dict[str, Any]) -> None:
    """Layers that other bits or another head make meaningless begin as in training from the start,
    and are named as new; all others are the donor's."""
    donor, config = tiny_generator(dtype=torch.float32), replace(tiny_config(), **changes)
    torch.manual_seed(0)
    ours = transplant(donor, OLD, config, NAMES, 0.0, reinitialise=True)
    theirs, fresh = donor.state_dict(), fresh_names(ours, donor.config, OLD, NAMES)
    assert fresh
    for name, value in ours.named_parameters():
        assert (name not in fresh) == (name in theirs and value.equal(theirs[name])), name
    assert not any(name.startswith("trunk.blocks.") for name in fresh)
    if config.bits_per_token != donor.config.bits_per_token:
        assert 0.02 == pytest.approx(ours.trunk.bit_merge.weight.std().item(), rel=0.2)
    order = torch.arange(config.num_tokens)[None]
    bits = torch.zeros(1, config.num_tokens, config.bits_per_token, dtype=torch.int64)
    ratio = torch.full((1, config.num_tokens), 0.5)
    assert ours.loss(bits, torch.tensor([2]), order, bits == 0, ratio).isfinite()


def test_what_is_new_to_a_model() -> None:
    """Rows of unknown classes and stretched tables are new; a subset of the classes is not."""
    old = tiny_config()
    one = Generator(replace(old, num_classes=1))
    assert set() == fresh_names(one, old, OLD, ["wren"])
    assert {CLASS_TABLE} == fresh_names(one, old, OLD, ["heron"])
    larger = Generator(replace(old, grid_size=8))
    assert {*CELL_TABLES, SEQUENCE_TABLE} == fresh_names(larger, old, OLD, NAMES)
