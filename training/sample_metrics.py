"""How alike two sets of images are: distances between clouds of feature vectors.

Used by evaluations, with any extractor's features. Numbers from different extractors, or from sets
of different sizes, do not compare; what may be called FID is decided in `evaluation.py`. Float64,
except for the distances of precision and recall, which would need too much memory. Sources: Heusel
et al., arXiv 1706.08500 (Fréchet distance); Kynkäänniemi et al., arXiv 1904.06991 (precision and
recall).
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Features = NDArray[np.float64]  # (N, D)

NEIGHBOUR = 3  # whose distance is the radius of a point's share of the manifold
BLOCK_ROWS = 4096  # of distances at once: 4096 × 50 000 of them are 0.8 GB


class Gaussian(NamedTuple):
    """The Gaussian that is fitted to a set of features."""

    mean: Features  # (D,)
    covariance: Features  # (D, D), unbiased


class PrecisionRecall(NamedTuple):
    """Shares of generated images that look real, and of real images that are covered."""

    precision: float
    recall: float


def gaussian_of(features: Features) -> Gaussian:
    """Fit a Gaussian to features (N, D). Raises ValueError for too few rows."""
    if len(features) <= features.shape[1]:
        raise ValueError(
            f"the set has {len(features)} rows of {features.shape[1]} features: the covariance "
            "needs more rows than features"
        )
    return Gaussian(features.mean(axis=0), np.cov(features, rowvar=False))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return |μa - μb|² + tr(Σa + Σb - 2(ΣaΣb)^½).

    Raises ValueError for Gaussians of different dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"{len(a.mean)} features do not compare with {len(b.mean)}")
    # ΣaΣb has the eigenvalues of the symmetric Σa^½ Σb Σa^½, which needs no complex square root,
    # nor anything added to the diagonal where a covariance is singular.
    root_a = _square_root(a.covariance)
    cross = np.linalg.eigvalsh(root_a @ b.covariance @ root_a)
    means = np.sum((a.mean - b.mean) ** 2)
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(cross.clip(0)).sum()
    return float(means + trace)


def _square_root(symmetric: Features) -> Features:
    values, vectors = np.linalg.eigh(symmetric)
    return np.asarray((vectors * np.sqrt(values.clip(0))) @ vectors.T)


def precision_recall(real: Tensor, generated: Tensor) -> PrecisionRecall:
    """Return the share of each set (N, D) that lies within the other's manifold.

    A point lies within a manifold if it is no further from one of its points than that point's
    third neighbour in its own set is. Raises ValueError for sets without third neighbours.
    """
    for features in (real, generated):
        if len(features) <= NEIGHBOUR:
            raise ValueError(f"a manifold needs more than {NEIGHBOUR} points, got {len(features)}")
    return PrecisionRecall(_share_within(generated, real), _share_within(real, generated))


def _share_within(points: Tensor, manifold: Tensor) -> float:
    radii = torch.cat(
        [
            # A point is its own neighbour 0.
            _squared_distances(part, manifold).kthvalue(NEIGHBOUR + 1, dim=1).values
            for part in manifold.split(BLOCK_ROWS)
        ]
    )
    within = [
        (_squared_distances(part, manifold) <= radii).any(dim=1)
        for part in points.split(BLOCK_ROWS)
    ]
    return float(torch.cat(within).double().mean())


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    return torch.addmm(squares, a, b.T, alpha=-2).clamp_(min=0)


def nearest_distances(points: Features, reference: Features) -> Features:
    """Return each point's root-mean-square distance to the nearest of `reference`, (N,)."""
    nearest = pairwise_distances(points, reference).min(axis=1)
    return np.asarray(nearest / np.sqrt(points.shape[1]))


def pairwise_distances(a: Features, b: Features) -> Features:
    """Return Euclidean distances (len(a), len(b))."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.asarray(np.sqrt(squares.clip(0)))
