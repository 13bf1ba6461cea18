"""What turns images into features: Inception, the judge of digits, or a function of yours.

Chosen by name with `--extractor` and called by `evaluation.py` and everything that compares images.
All of them look at the uint8 images that a client would receive. Distances in the features of
different extractors do not compare, so each carries its name and a hash of its weights, which stand
beside every figure.
"""

import hashlib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpoint import check_fit, shapes_of
from model.config import PRESETS
from training import digits_data
from training.errors import TrainingError
from training.inception import Inception
from training.judge import Judge, train_judge
from training.pretrained import PretrainedFile, read_weights

INCEPTION = "inception"
DIGITS = "digits"

INCEPTION_FILE = PretrainedFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "github.com/toshas/torch-fidelity/releases/tag/v0.2.0",
    "95.6 MB",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "pt_inception-2015-12-05-6726825d.pth",  # github.com/mseitzer/pytorch-fid
)


class ImageFeatures(NamedTuple):
    """What an extractor sees in images; what it does not look for is None."""

    pool: Tensor  # (B, D), what distances, precision and recall are measured in
    spatial: Tensor | None = None  # (B, D'), which keep where things are
    logits: Tensor | None = None  # (B, C) of classes


class Extractor(Protocol):
    """Turns images into features."""

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> str:
        """A hash of all that features depend on besides the image."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of its logits, if they are to be compared with what was asked for."""

    def __call__(self, images: Tensor) -> ImageFeatures:
        """Return the features of uint8 images (B, 3, height, width)."""


def find_extractor(name: str, device: torch.device, folder: Path | None = None) -> Extractor:
    """Return an extractor by name, or one that a function `module:function` makes.

    `folder` is where Inception's weights are looked for first. Raises TrainingError for one that
    cannot be had, saying what to do.
    """
    if name == INCEPTION:
        return InceptionExtractor(device, folder)
    if name == DIGITS:
        data = digits_data.load(PRESETS[DIGITS].tokenizer.image_size)
        return JudgeExtractor(train_judge(data.held_out, len(digits_data.NAMES)), device)
    if ":" in name:
        return OwnExtractor(name, device)
    raise TrainingError(
        f"there is no extractor {name!r}: {INCEPTION}, {DIGITS}, or module:function for one of "
        "your own"
    )


class InceptionExtractor:
    """InceptionV3 of 2015, with which FID is defined."""

    name = INCEPTION
    class_names: tuple[str, ...] = ()  # its 1008 classes are in an order of their own

    def __init__(self, device: torch.device, folder: Path | None) -> None:
        state = read_weights(
            INCEPTION_FILE,
            folder,
            needed_by="the extractor inception",
            otherwise="name another folder with --networks, or choose another --extractor",
        )
        network = Inception()
        check_fit(shapes_of(state), shapes_of(network.state_dict()), INCEPTION_FILE.name)
        network.load_state_dict(state)
        self.weights = INCEPTION_FILE.sha256[:16]
        self._network = network.eval().requires_grad_(False).to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ImageFeatures:
        # A GPU would round what convolutions multiply to 10 bits: it shows in the third decimal.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return ImageFeatures(*self._network(images.to(self._device)))


class JudgeExtractor:
    """The judge of digits: fitted to held-out digits within seconds, the same every time."""

    name = DIGITS
    class_names = digits_data.NAMES

    def __init__(self, judge: Judge, device: torch.device) -> None:
        self._judge = judge.to(device)
        self.weights = hash_of(self._judge)
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ImageFeatures:
        pixels = images.to(self._device).float() / 127.5 - 1
        features = self._judge.features(pixels)
        return ImageFeatures(features, logits=self._judge.classify(F.gelu(features)))


class OwnExtractor:
    """What a function of the user's makes of a device.

    It takes uint8 images (B, 3, height, width) and returns features (B, D), or a mapping of `pool`
    and, if it has them, `spatial` and `logits`.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, name: str, device: torch.device) -> None:
        module_name, _, function = name.partition(":")
        try:
            module = importlib.import_module(module_name)
            make: Callable[[torch.device], Any] = getattr(module, function)
        except (ImportError, AttributeError) as error:
            raise TrainingError(
                f"--extractor {name}: {error}; it must be a function in a module that Python finds "
                "(PYTHONPATH=. finds those of this folder)"
            ) from error
        self.name = name
        self._extract = make(device)
        self._device = device
        if isinstance(self._extract, nn.Module):
            self._extract.eval()
            self.weights = hash_of(self._extract)
        else:
            self.weights = hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:16]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ImageFeatures:
        seen = self._extract(images.to(self._device))
        try:
            features = ImageFeatures(**seen) if isinstance(seen, Mapping) else ImageFeatures(seen)
        except TypeError as error:
            raise TrainingError(
                f"--extractor {self.name} returns {', '.join(seen)}: expected pool, and perhaps "
                "spatial and logits"
            ) from error
        for part in features:
            if part is not None and (part.ndim != 2 or len(part) != len(images)):
                raise TrainingError(
                    f"--extractor {self.name} makes {tuple(part.shape)} of {len(images)} images: "
                    f"expected ({len(images)}, features)"
                )
        return features


def hash_of(module: nn.Module) -> str:
    """Hash the weights of a module."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
