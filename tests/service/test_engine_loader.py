"""Facts of the loader: a directory becomes an engine, a device that is not there is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ImageRequest
from model.zoo import resolve
from service.engine_loader import choose_device, load_engine
from service.errors import StartupError


def test_a_model_directory_becomes_an_engine(tiny_model_dir: Path) -> None:
    """The engine has the slots asked for and makes images of the model's size."""
    info = resolve(tiny_model_dir)
    engine = load_engine(info, "cpu", 3)
    assert 3 == engine.num_slots == engine.free_slots
    engine.admit(ImageRequest(class_id=0, seed=0, sampling=info.sampling))
    full: list[int] = []
    while not full:
        full = engine.step()
    pixels = engine.decode(full)
    assert (1, 8, 8, 3) == pixels.shape
    assert np.dtype(np.uint8) == pixels.dtype


def test_auto_is_cuda_where_there_is_one() -> None:
    """The default device is the best that torch finds."""
    assert ("cuda" if torch.cuda.is_available() else "cpu") == choose_device("auto")
    assert "cpu" == choose_device("cpu")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x"])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    """What torch does not know is answered with what to use."""
    with pytest.raises(StartupError, match="use auto, cpu or cuda"):
        choose_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_refused_where_there_is_none() -> None:
    """Asking for a GPU never falls back to the CPU silently."""
    with pytest.raises(StartupError, match="no CUDA device"):
        choose_device("cuda")
