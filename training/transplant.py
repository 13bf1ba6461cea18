"""A trained generator's weights in one of other classes, or of another resolution.

Called by `bar finetune`. Of all weights only the class table depends on how many classes there are,
and only the position tables on how many tokens; everything else is carried over as it is. Another
number of bits, another patch or another head make some layers meaningless: that is refused, unless
those layers are to begin anew.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.nn import functional as F

from model.class_labels import ClassLabel, ClassLabels
from model.config import GeneratorConfig
from model.generator import Generator
from model.transformer import FIRST_CLASS_ROW, SPARE_CONDITIONS, SPARE_POSITIONS
from training.errors import TrainingError
from training.initialise import initialise_generator

NOISE = 0.1  # of a new class, in standard deviations of the old ones

CLASS_TABLE = "trunk.class_embed.weight"
CELL_TABLES = ("trunk.position_embed", "trunk.target_position_embed")
SEQUENCE_TABLE = "trunk.condition_position_embed"
FREE = ("num_classes", "grid_size")
BIT_LAYERS = ("trunk.bit_*", "head.bit_*", "head.input_*")
# What else may differ, and the layers that begin anew where it does.
REINITIALISED = {
    "bits_per_latent": BIT_LAYERS,
    "patch_size": BIT_LAYERS,
    "head": ("head.*",),
    "head_width": ("head.*", "trunk.latent_proj.*"),
    "head_depth": ("head.*",),
}


def transplant(
    donor: Generator,
    donor_labels: ClassLabels,
    config: GeneratorConfig,
    names: Sequence[str],
    dropout: float,
    *,
    reinitialise: bool = False,
) -> Generator:
    """Return a generator of `config` with the donor's weights.

    A class that the donor knows, by name or WordNet id, keeps its row; a new one begins as the mean
    of the old ones with a little noise, drawn from torch's generator; "no class" stays. With
    `reinitialise`, layers that another number of bits, patch or head makes meaningless begin as in
    training from the start.
    Raises TrainingError if more differs than that.
    """
    check_transplant(donor.config, config, reinitialise=reinitialise)
    generator = Generator(config, dropout)
    if anew := anew_globs(donor.config, config):
        initialise_generator(generator)
    state = dict(donor.state_dict())
    state[CLASS_TABLE] = class_rows(state[CLASS_TABLE], donor_labels, names)
    if config.tokens_per_side != donor.config.tokens_per_side:
        for name in CELL_TABLES:
            state[name] = cell_rows(state[name], donor.config, config)
        state[SEQUENCE_TABLE] = sequence_rows(state[SEQUENCE_TABLE], donor.config, config)
    own = generator.state_dict()
    generator.load_state_dict(
        {name: own[name] if _fits(name, anew) else state[name] for name in own}
    )
    return generator


def check_transplant(
    old: GeneratorConfig, new: GeneratorConfig, *, reinitialise: bool = False
) -> None:
    """Raise TrainingError if a generator of `new` cannot begin with weights of `old`."""
    differing = {
        name: f"{name} {getattr(new, name)} (was {getattr(old, name)})"
        for name in vars(new)
        if name not in FREE and getattr(new, name) != getattr(old, name)
    }
    if impossible := [text for name, text in differing.items() if name not in REINITIALISED]:
        raise TrainingError(
            "finetuning keeps the trunk but for classes and grid, got "
            f"{', '.join(impossible)}: train a generator from the start instead"
        )
    if differing and not reinitialise:
        layers = ", ".join(anew_globs(old, new))
        raise TrainingError(
            f"finetuning keeps what bits mean, got {', '.join(differing.values())}: give "
            f"--reinitialise to let {layers} begin anew, or keep the model's own tokenizer"
        )


def anew_globs(old: GeneratorConfig, new: GeneratorConfig) -> list[str]:
    """Return the patterns of layers that cannot be carried over from `old` to `new`."""
    found = [
        glob
        for name, globs in REINITIALISED.items()
        if getattr(old, name) != getattr(new, name)
        for glob in globs
    ]
    if found and new.head != "masked_bit":  # the other heads are one layer, of as many bits
        found.append("head.*")
    return list(dict.fromkeys(found))


def fresh_names(
    generator: Generator, old: GeneratorConfig, old_labels: ClassLabels, names: Sequence[str]
) -> set[str]:
    """Return the parameters of `generator` that hold something which the old model did not know:
    rows of new classes, stretched position tables, layers that begin anew."""
    new, fresh = generator.config, set[str]()
    if None in known_classes(old_labels, names):
        fresh.add(CLASS_TABLE)
    if new.tokens_per_side != old.tokens_per_side:
        fresh |= {*CELL_TABLES, SEQUENCE_TABLE}
    anew = anew_globs(old, new)
    return fresh | {name for name, _ in generator.named_parameters() if _fits(name, anew)}


def _fits(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def class_rows(table: Tensor, old: ClassLabels, new: Sequence[str]) -> Tensor:
    """Return the class table (3 + classes + 1, D) for the names `new`."""
    first, old_rows, null = (
        table[:FIRST_CLASS_ROW],
        table[FIRST_CLASS_ROW : FIRST_CLASS_ROW + len(old)],
        table[FIRST_CLASS_ROW + len(old) :],
    )
    mean, spread = old_rows.mean(dim=0), old_rows.std(dim=0, unbiased=False)
    rows = [
        mean + NOISE * spread * torch.randn_like(mean) if known is None else old_rows[known]
        for known in known_classes(old, new)
    ]
    return torch.cat([first, torch.stack(rows), null])


def known_classes(old: ClassLabels, names: Sequence[str]) -> list[int | None]:
    """Return for each name which old class it is, by any of its names or its WordNet id.

    None is a class that is new, or whose name several old ones have (ImageNet has two cranes).
    """
    found = [old.called(name) for name in names]
    return [labels[0].index if len(labels) == 1 else None for labels in found]


def ambiguous_classes(old: ClassLabels, names: Sequence[str]) -> dict[str, Sequence[ClassLabel]]:
    """Return the names that several old classes have, with those classes."""
    return {name: labels for name in names if len(labels := old.called(name)) > 1}


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
