"""Where images are looked at: an extractor, and the processes that share the work.

Used by `bar evaluate` and `bar sweep`. Images pass once and are forgotten; what is kept of them is
`image_statistics.py`'s, and comparing it with a reference `evaluation_figures.py`'s.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.extractors import Extractor
from training.image_sets import ImageSet
from training.image_statistics import ImageStatistics
from training.pictures import Pixels
from training.processes import Processes
from training.progress import Progress


@dataclass(frozen=True)
class Lab:
    """What figures are measured with: the extractor, the processes that share the work."""

    extractor: Extractor
    device: torch.device
    processes: Processes
    stream: TextIO
    batch_size: int = 64

    def measure(
        self,
        name: str,
        batches: Iterable[tuple[int, Pixels]],
        statistics: ImageStatistics,
        labels: NDArray[np.int64] | None = None,
    ) -> ImageStatistics:
        """Look at images, and return what is kept of those of all processes.

        `labels` (N,) are the extractor's classes that the images should be of, if it can tell.
        """
        progress = Progress(name, 0, statistics.num_images, self.stream)
        for first, images in batches:
            wanted = None
            if labels is not None:
                wanted = torch.from_numpy(labels[first : first + len(images)])
            features = self.extractor(to_tensor(images, self.device))
            statistics.add(first, features, wanted)
            if (done := first + len(images)) < statistics.num_images:
                progress.show(done, {})
        whole = statistics.gathered(self.processes)
        progress.show(statistics.num_images, {})
        return whole

    def measure_set(self, images: ImageSet, num_kept: int) -> ImageStatistics:
        """Look at a whole set of images."""
        statistics = ImageStatistics(len(images), num_kept)
        processes = self.processes
        batches = images.batches(self.batch_size, processes.rank, processes.count)
        return self.measure(images.name, batches, statistics)

    def labels(
        self, class_ids: NDArray[np.int64] | None, class_names: Sequence[str]
    ) -> NDArray[np.int64] | None:
        """Return a model's classes as the extractor's own; None where it does not know them all."""
        known = {name: index for index, name in enumerate(self.extractor.class_names)}
        if class_ids is None or not set(class_names) <= set(known):
            return None
        return np.array([known[name] for name in class_names], dtype=np.int64)[class_ids]


def to_tensor(images: Pixels, device: torch.device) -> Tensor:
    """Uint8 (n, height, width, 3) → the same (n, 3, height, width) on a device."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2)
