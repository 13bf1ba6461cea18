"""From a model's files to an engine: the one module of the service that imports torch.

Imported in the engine's thread, when the weights are to be loaded, so that neither the API nor
`bar --help` waits for it.
"""

import torch

from model.checkpoint import load_model
from model.engine import Engine
from model.zoo import ModelInfo
from service.errors import StartupError


def load_engine(info: ModelInfo, device: str, num_slots: int) -> Engine:
    """Load the weights of `info` onto `device` ("auto": cuda where there is one) and warm up.

    Raises: CheckpointError for files that do not hold the model, StartupError for a device that
    is not there.
    """
    generator, tokenizer = load_model(info, device=choose_device(device))
    engine = Engine(generator, tokenizer, num_slots=num_slots)
    engine.warm_up()
    return engine


def choose_device(device: str) -> str:
    """Return the torch device that `device` stands for; StartupError if it cannot be used."""
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if has_cuda else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise StartupError(f"there is no device {device!r}; use auto, cpu or cuda") from None
    if kind == "cuda" and not has_cuda:
        raise StartupError(f"device {device!r} is asked for, but torch finds no CUDA device here")
    return device
