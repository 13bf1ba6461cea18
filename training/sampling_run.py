"""Many images of a model: `bar sample`, and what evaluations are measured on.

Image i has seed `first seed + i` and the classes take turns, so that any prefix of the images is
balanced. The `.npz` is what the ADM evaluator reads: `arr_0`, uint8 (N, height, width, 3).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np
import torch

from model import zoo
from model.checkpoint import load_model
from model.class_labels import AmbiguousClassError, UnknownClassError
from model.config import MAX_SEED, ImageRequest, SamplingConfig
from model.generate import generate
from model.generator import Generator
from model.tokenizer import Tokenizer
from training.errors import TrainingError
from training.pictures import Pixels, save_grid
from training.progress import Progress
from training.run_folder import MODEL_FOLDER


@dataclass(frozen=True)
class Sampler:
    """A loaded model with the settings to draw with."""

    info: zoo.ModelInfo
    generator: Generator
    tokenizer: Tokenizer
    sampling: SamplingConfig
    batch_size: int

    @classmethod
    def load(
        cls,
        name_or_dir: str,
        changes: Mapping[str, Any],
        device: torch.device,
        batch_size: int,
    ) -> Self:
        """Load a model, or what a run ended in; `changes` that are not None replace its defaults.

        Raises TrainingError for settings out of range, CheckpointError if there is no such model.
        """
        folder = Path(name_or_dir) / MODEL_FOLDER
        info = zoo.resolve(folder if folder.is_dir() else name_or_dir)
        given = {name: value for name, value in changes.items() if value is not None}
        try:
            sampling = replace(info.sampling, **given)
        except ValueError as error:
            raise TrainingError(str(error)) from error
        return cls(info, *load_model(info, device=device), sampling, batch_size)

    def find_classes(self, names: Sequence[str]) -> list[int]:
        """Return the ids of classes by name or index; of all classes if none is named."""
        labels = self.info.class_labels
        try:
            return [labels.find(name).index for name in names] or list(range(len(labels)))
        except (UnknownClassError, AmbiguousClassError) as error:
            raise TrainingError(str(error)) from error

    def draw(self, classes: Sequence[int], count: int, first_seed: int) -> Iterator[Pixels]:
        """Yield batches of images, uint8 (n, height, width, 3), `count` in all, classes in turn."""
        if count < 1:
            raise TrainingError(f"the number of images must be at least 1, got {count}")
        for start in range(0, count, self.batch_size):
            requests = [
                ImageRequest(
                    class_id=classes[i % len(classes)],
                    seed=(first_seed + i) % (MAX_SEED + 1),
                    sampling=self.sampling,
                )
                for i in range(start, min(start + self.batch_size, count))
            ]
            yield generate(self.generator, self.tokenizer, requests)


def save_sheet(
    path: Path,
    sampler: Sampler,
    classes: Sequence[int],
    per_class: int,
    first_seed: int,
    stream: TextIO,
) -> None:
    """Write a grid with a column for each class."""
    save_grid(path, _all(sampler, classes, per_class, first_seed, stream), len(classes))


def save_npz(
    path: Path,
    sampler: Sampler,
    classes: Sequence[int],
    per_class: int,
    first_seed: int,
    stream: TextIO,
) -> None:
    """Write all images under `arr_0`."""
    np.savez(path, arr_0=_all(sampler, classes, per_class, first_seed, stream))


def _all(
    sampler: Sampler, classes: Sequence[int], per_class: int, first_seed: int, stream: TextIO
) -> Pixels:
    count = per_class * len(classes)
    progress, parts = Progress("sample", 0, count, stream), list[Pixels]()
    for images in sampler.draw(classes, count, first_seed):
        parts.append(images)
        progress.show(sum(map(len, parts)), {})
    return np.concatenate(parts)
