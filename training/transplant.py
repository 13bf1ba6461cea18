"""A trained generator's weights in one of other classes, or of another resolution.

Called by `bar finetune`. Of all weights only the class table depends on how many classes there are,
and only the position tables on how many tokens; everything else is carried over as it is. What
would change the meaning of bits, their number or the patch, is refused.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import GeneratorConfig
from model.generator import Generator
from model.transformer import FIRST_CLASS_ROW, SPARE_CONDITIONS, SPARE_POSITIONS
from training.errors import TrainingError

NOISE = 0.1  # of a new class, in standard deviations of the old ones

CLASS_TABLE = "trunk.class_embed.weight"
CELL_TABLES = ("trunk.position_embed", "trunk.target_position_embed")
SEQUENCE_TABLE = "trunk.condition_position_embed"
FREE = ("num_classes", "grid_size")


def transplant(
    donor: Generator,
    donor_names: Sequence[str],
    config: GeneratorConfig,
    names: Sequence[str],
    dropout: float,
) -> Generator:
    """Return a generator of `config` with the donor's weights.

    A class of the same name keeps its row; a new one begins as the mean of the old ones with a
    little noise, drawn from torch's generator; "no class" stays. Raises TrainingError if more than
    the classes and the grid differ.
    """
    differing = [
        f"{name} {getattr(config, name)} (was {getattr(donor.config, name)})"
        for name in vars(config)
        if name not in FREE and getattr(config, name) != getattr(donor.config, name)
    ]
    if differing:
        raise TrainingError(
            "finetuning keeps the architecture but for classes and grid, got "
            f"{', '.join(differing)}: train a generator from the start instead"
        )
    state = dict(donor.state_dict())
    state[CLASS_TABLE] = class_rows(state[CLASS_TABLE], donor_names, names)
    if config.grid_size != donor.config.grid_size:
        for name in CELL_TABLES:
            state[name] = cell_rows(state[name], donor.config, config)
        state[SEQUENCE_TABLE] = sequence_rows(state[SEQUENCE_TABLE], donor.config, config)
    generator = Generator(config, dropout)
    generator.load_state_dict(state)
    return generator


def class_rows(table: Tensor, old: Sequence[str], new: Sequence[str]) -> Tensor:
    """Return the class table (3 + classes + 1, D) for the names `new`."""
    first, old_rows, null = (
        table[:FIRST_CLASS_ROW],
        table[FIRST_CLASS_ROW : FIRST_CLASS_ROW + len(old)],
        table[FIRST_CLASS_ROW + len(old) :],
    )
    mean, spread = old_rows.mean(dim=0), old_rows.std(dim=0, unbiased=False)
    known = {plain(name): row for name, row in zip(old, old_rows, strict=True)}
    rows = [
        known[plain(name)]
        if plain(name) in known
        else mean + NOISE * spread * torch.randn_like(mean)
        for name in new
    ]
    return torch.cat([first, torch.stack(rows), null])


def plain(name: str) -> str:
    """Fold what people write differently in a class name."""
    return " ".join(name.replace("_", " ").replace("-", " ").split()).casefold()


def cell_rows(table: Tensor, old: GeneratorConfig, new: GeneratorConfig) -> Tensor:
    """Scale the part of a position table (1, rows, D) that belongs to cells of the image."""
    prefix, cells = old.prefix_len, table[:, old.prefix_len : old.prefix_len + old.num_tokens]
    side, target = old.tokens_per_side, new.tokens_per_side
    grid = cells.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scaled = F.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    rows = scaled.permute(0, 2, 3, 1).reshape(1, target * target, -1)
    spare = new.num_tokens + SPARE_POSITIONS - prefix - rows.shape[1]
    return torch.cat([table[:, :prefix], rows, rows.new_zeros(1, spare, rows.shape[2])], dim=1)


def sequence_rows(table: Tensor, old: GeneratorConfig, new: GeneratorConfig) -> Tensor:
    """Stretch the table of places in generation order (1, rows, D), its prefix aside."""
    prefix, steps = old.prefix_len, table[:, old.prefix_len : old.sequence_len]
    stretched = F.interpolate(
        steps.transpose(1, 2), size=new.num_tokens - 1, mode="linear", align_corners=True
    ).transpose(1, 2)
    spare = new.num_tokens + SPARE_CONDITIONS - prefix - stretched.shape[1]
    return torch.cat(
        [table[:, :prefix], stretched, stretched.new_zeros(1, spare, table.shape[2])], dim=1
    )
