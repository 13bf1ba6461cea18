"""What is kept of a stream of images, so that the images themselves need not be.

Filled batch by batch from an extractor's features and read by `evaluation.py`. Means and
covariances are updated in float64 (Chan, Golub and LeVeque 1983), class probabilities summed by
split; only precision and recall need the features themselves, in float32: 0.4 GB for 50 000 images
of 2048. Several processes take batches in turn, and their sums are put together once, at the end.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.extractors import ImageFeatures
from training.processes import Processes
from training.sample_metrics import Gaussian

SPLIT_SIZE = 5000  # images whose class probabilities make one score; the score is their mean


class Moments:
    """Mean and covariance of rows that come in batches."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)  # Σ (x - mean)(x - mean)ᵀ

    def add(self, rows: Tensor) -> None:
        """Take rows (n, D) into account."""
        rows = rows.double()
        mean = rows.mean(dim=0)
        centred = rows - mean
        self._merge(len(rows), mean, centred.T @ centred)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if not self.count:
            self.count, self._mean, self._scatter = count, mean, scatter
            return
        total, apart = self.count + count, mean - self._mean
        self._mean = self._mean + apart * (count / total)
        between = torch.outer(apart, apart) * (self.count * count / total)
        self._scatter = self._scatter + scatter + between
        self.count = total

    def gaussian(self) -> Gaussian:
        """Return mean and unbiased covariance. Raises ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        covariance = self._scatter / (self.count - 1)
        return Gaussian(self._mean.numpy(force=True), covariance.numpy(force=True))

    def gathered(self, processes: Processes) -> "Moments":
        """Return the moments of the rows of all processes."""
        counts = torch.full_like(self._mean, self.count)
        packed = torch.cat([counts[None], self._mean[None], self._scatter])
        whole = Moments()
        for part in processes.gathered(packed):
            if len(part) > 2:
                whole._merge(int(part[0, 0]), part[1], part[2:])
        return whole


class ClassScore:
    """exp of the mean divergence of class probabilities from their mean, over splits of 5000.

    Over each split Σ p log p and Σ p are enough, which makes it a stream. The last split may be
    shorter, and counts like the others: so does the published evaluator.
    """

    def __init__(self) -> None:
        self._splits: dict[int, Tensor] = {}  # (2 + C): images, Σ p log p, Σ p

    def add(self, first: int, logits: Tensor) -> None:
        """Take the logits (n, C) of images `first`, `first + 1`, … into account."""
        log_p = torch.log_softmax(logits.double(), dim=1)
        p = log_p.exp()
        rows = torch.cat([torch.ones_like(p[:, :1]), (p * log_p).sum(1, keepdim=True), p], dim=1)
        numbers = torch.arange(first, first + len(rows)) // SPLIT_SIZE
        for number in numbers.unique().tolist():
            self._take(number, rows[(numbers == number).to(rows.device)].sum(dim=0))

    def _take(self, number: int, sums: Tensor) -> None:
        known = self._splits.get(number)
        self._splits[number] = sums if known is None else known + sums

    def value(self) -> float:
        """Return the score."""
        scores = []
        for _, sums in sorted(self._splits.items()):
            count, entropies, mean = float(sums[0]), float(sums[1]), sums[2:] / sums[0]
            divergence = entropies / count - float(torch.xlogy(mean, mean).sum())
            scores.append(torch.tensor(divergence, dtype=torch.float64).exp())
        return float(torch.stack(scores).mean())

    def gathered(self, processes: Processes) -> "ClassScore":
        """Return the score of the images of all processes."""
        packed = [torch.cat([sums.new_tensor([n]), sums])[None] for n, sums in self._splits.items()]
        whole = ClassScore()
        for part in processes.gathered(_together(packed)):
            for row in part:
                whole._take(int(row[0]), row[1:])
        return whole


class ImageStatistics:
    """Everything that evaluations ask of a set of `num_images` images.

    The features of `num_kept` at most, evenly spread, are kept for precision and recall.
    """

    def __init__(self, num_images: int, num_kept: int) -> None:
        self.num_images, self.num_kept = num_images, min(num_kept, num_images)
        self.pool, self.spatial, self.score = Moments(), Moments(), ClassScore()
        self.has_spatial = self.has_classes = False
        self._kept: list[Tensor] = []
        self._right = torch.zeros(1, 2, dtype=torch.float64)  # images, those of the right class

    @property
    def count(self) -> int:
        return self.pool.count

    def add(self, first: int, features: ImageFeatures, class_ids: Tensor | None = None) -> None:
        """Take the features of images `first`, `first + 1`, … into account.

        `class_ids` (n,) are those that the images should be of, if that can be judged.
        """
        self.pool.add(features.pool)
        if features.spatial is not None:
            self.has_spatial = True
            self.spatial.add(features.spatial)
        if features.logits is not None:
            self.has_classes = True
            self.score.add(first, features.logits)
            if class_ids is not None:
                right = features.logits.argmax(dim=1).cpu() == class_ids
                self._right += torch.tensor([[len(right), int(right.sum())]])
        places = torch.arange(first, first + len(features.pool) + 1)
        shares = places * self.num_kept // self.num_images
        self._kept.append(features.pool.float().cpu()[shares.diff() > 0])

    @property
    def features(self) -> Tensor:
        """The features that were kept, float32 (n, D)."""
        return _together(self._kept, torch.float32)

    @property
    def accuracy(self) -> float | None:
        """The share of images that are taken for what they should be, if that was judged."""
        count, right = self._right[0].tolist()
        return right / count if count else None

    def gathered(self, processes: Processes) -> "ImageStatistics":
        """Return the statistics of the images of all processes, the same on each."""
        whole = ImageStatistics(self.num_images, self.num_kept)
        flags = torch.tensor([[self.has_spatial, self.has_classes]], dtype=torch.float64)
        told = torch.cat(processes.gathered(flags)).amax(dim=0)
        whole.has_spatial, whole.has_classes = bool(told[0]), bool(told[1])
        whole.pool = self.pool.gathered(processes)
        if whole.has_spatial:
            whole.spatial = self.spatial.gathered(processes)
        if whole.has_classes:
            whole.score = self.score.gathered(processes)
        if self.num_kept:
            whole._kept = processes.gathered(self.features)
        whole._right = torch.stack(processes.gathered(self._right)).sum(dim=0)
        return whole


def _together(parts: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    """Put rows together; no rows are a tensor (0, 0)."""
    there = [part for part in parts if len(part)]
    return torch.cat(there) if there else torch.zeros(0, 0, dtype=dtype)
