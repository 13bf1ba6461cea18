"""Which weights of a generator stay as they are while the others are trained."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from training.errors import TrainingError

PRESETS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "trunk": ("trunk.blocks.*", "trunk.bit_*", "trunk.*position_embed"),
    "head": ("head.*",),
    "all-but-classes": ("head.*", "trunk.[!c]*", "trunk.cls_token", "trunk.condition_*"),
}


def freeze(model: nn.Module, patterns: Sequence[str]) -> tuple[int, int]:
    """Freeze the parameters whose name fits a pattern; return how many numbers are trained, of
    how many.

    A pattern is a name with wildcards, `trunk.blocks.[0-9].*`, or one of PRESETS. Raises
    TrainingError for a pattern that fits nothing, and if nothing is left to train.
    """
    expanded = [glob for pattern in patterns for glob in PRESETS.get(pattern, (pattern,))]
    parameters = dict(model.named_parameters())
    for glob in expanded:
        fitting = [name for name in parameters if fnmatchcase(name, glob)]
        if not fitting:
            raise TrainingError(
                f"no weight is called like {glob!r}: names look like {next(iter(parameters))!r}; "
                f"or give one of {', '.join(PRESETS)}"
            )
        for name in fitting:
            parameters[name].requires_grad_(False)
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    if not trained:
        raise TrainingError(f"{', '.join(patterns)} freezes everything: nothing is left to train")
    return trained, sum(p.numel() for p in parameters.values())
