"""Weights that others have trained, which the perceptual losses look through.

Read by `perceptual_losses.py` and `extractors.py` from files that are on this machine: nothing is
fetched behind anyone's back. A file is looked for in the folder that is named and where torch keeps
what it has fetched; its name and its checksum are the publisher's.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from model.errors import CheckpointError
from training.errors import TrainingError
from training.section import Section


class NetworksConfig(Section):
    """Where pretrained networks are on this machine."""

    folder: Path | None = None
    dino: str | None = None  # what the discriminator looks through
    siglip2: str | None = None  # where a SigLIP2 encoder starts; None starts from random weights


@dataclass(frozen=True)
class PretrainedFile:
    """One file of weights as its publisher names it."""

    name: str
    source: str
    size: str
    sha256: str  # as far as the publisher tells it
    other_name: str = ""  # what another publisher calls the same file


VGG16 = PretrainedFile(
    "vgg16-397923af.pth", "torchvision, VGG16_Weights.IMAGENET1K_V1", "528 MB", "397923af"
)
LPIPS_VGG = PretrainedFile(
    "vgg.pth",
    "the package lpips 0.1.4, lpips/weights/v0.1",
    "7 kB",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
)
CONVNEXT_SMALL = PretrainedFile(
    "convnext_small-0c510722.pth",
    "torchvision, ConvNeXt_Small_Weights.IMAGENET1K_V1",
    "192 MB",
    "0c510722",
)


def read_pretrained(file: PretrainedFile, loss: str, networks: NetworksConfig) -> dict[str, Tensor]:
    """Return the state dict of a file that `loss` needs; raises as `read_weights` does."""
    return read_weights(file, networks.folder, **_reasons(loss))


def find_pretrained(file: PretrainedFile, loss: str, networks: NetworksConfig) -> Path:
    """Return where the file is that `loss` needs; raises as `find_weights` does."""
    return find_weights(file, networks.folder, **_reasons(loss))


def _reasons(loss: str) -> dict[str, str]:
    return {
        "needed_by": f"losses.{loss}",
        "otherwise": f"name another folder with networks.folder, or set losses.{loss} to 0",
    }


def find_weights(
    file: PretrainedFile, folder: Path | None, *, needed_by: str, otherwise: str
) -> Path:
    """Return the path of a file in `folder`, or where torch keeps what it has fetched.

    Raises TrainingError saying where to put the file, and how to do without it.
    """
    places = [Path(torch.hub.get_dir()) / "checkpoints"]
    if folder is not None:
        places.insert(0, folder)
    names = [name for name in (file.name, file.other_name) if name]
    candidates = (place / name for place in places for name in names)
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise TrainingError(
            f"{needed_by} needs {file.name} ({file.size}; {file.source}; SHA-256 "
            f"{file.sha256[:8]}…): put it into {' or '.join(map(str, places))}, {otherwise}"
        )
    return path


def read_weights(
    file: PretrainedFile, folder: Path | None, *, needed_by: str, otherwise: str
) -> dict[str, Tensor]:
    """Return the state dict of the file that `find_weights` finds, raising what it raises.

    Raises CheckpointError if it is damaged.
    """
    path = find_weights(file, folder, needed_by=needed_by, otherwise=otherwise)
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if not digest.startswith(file.sha256):
        raise CheckpointError(
            f"{path} is damaged or of another training: its SHA-256 is {digest[:12]}…, "
            f"{file.source} has {file.sha256[:12]}…"
        )
    try:
        state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return dict(state)
