"""A generator's weights in one of other classes, or another grid."""

from dataclasses import replace

import pytest
import torch

from tests.model.tiny import NUM_CLASSES, tiny_config, tiny_generator
from training.errors import TrainingError
from training.transplant import cell_rows, class_rows, transplant

OLD = ["owl", "sea_eagle", "wren", "gull", "tern"]


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
    assert 5 == len(transplant(donor, OLD, config, ["wren"], 0.0).trunk.class_embed.weight)


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
    larger = transplant(tiny_generator(dtype=torch.float32), OLD, new, OLD, 0.0)
    order = torch.arange(64)[None]
    latents = larger.trunk(torch.zeros(1, 64, 4, dtype=torch.int64), torch.zeros(1).long(), order)
    assert (1, 64, 32) == tuple(latents.shape)
    assert latents.isfinite().all()


def test_other_bits_are_refused() -> None:
    """What would change the meaning of bits, or the sizes, is an error with both numbers."""
    config = replace(tiny_config(), bits_per_latent=8, depth=3)
    with pytest.raises(TrainingError, match=r"bits_per_latent 8 \(was 4\), depth 3 \(was 2\)"):
        transplant(tiny_generator(dtype=torch.float32), OLD, config, OLD, 0.0)
