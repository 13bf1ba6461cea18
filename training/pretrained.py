"""Weights that others have trained, which the perceptual losses look through.

Read by `perceptual_losses.py` from files that are on this machine: nothing is fetched behind
anyone's back. A file is looked for in the folder that `networks.folder` names and where torch keeps
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
    """Return the state dict of a file that `loss` needs.

    Raises TrainingError saying where to put the file, and how to do without it; CheckpointError if
    it is damaged.
    """
    places = [Path(torch.hub.get_dir()) / "checkpoints"]
    if networks.folder is not None:
        places.insert(0, networks.folder)
    path = next((place / file.name for place in places if (place / file.name).is_file()), None)
    if path is None:
        raise TrainingError(
            f"losses.{loss} needs {file.name} ({file.size}; {file.source}): put it into "
            f"{' or '.join(map(str, places))}, name another folder with networks.folder, or set "
            f"losses.{loss} to 0"
        )
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
