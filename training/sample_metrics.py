"""How alike two sets of images are: distances between clouds of feature vectors.

Used by evaluations, with any extractor's features. Numbers from different extractors, or from sets
of different sizes, do not compare; only the Inception-based figure on 50 000 images may be called
FID, so nothing here is. Float64 throughout. Sources: Heusel et al., arXiv 1706.08500 (Fréchet
distance); Kynkäänniemi et al., arXiv 1904.06991 (precision and recall).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]  # (N, D)

NEIGHBOUR = 3  # whose distance is the radius of a point's share of the manifold


class PrecisionRecall(NamedTuple):
    """Shares of generated images that look real, and of real images that are covered."""

    precision: float
    recall: float


def frechet_distance(a: Features, b: Features) -> float:
    """Return |μa - μb|² + tr(Σa + Σb - 2(ΣaΣb)^½), the distance of the fitted Gaussians.

    Raises ValueError if either set has too few rows for its covariance.
    """
    for name, features in (("first", a), ("second", b)):
        if len(features) <= features.shape[1]:
            raise ValueError(
                f"the {name} set has {len(features)} rows of {features.shape[1]} features: the "
                "covariance needs more rows than features"
            )
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # ΣaΣb has the eigenvalues of the symmetric Σa^½ Σb Σa^½, which needs no complex square root.
    root_a = _square_root(cov_a)
    cross = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    means = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(cross.clip(0)).sum()
    return float(means + trace)


def _square_root(symmetric: Features) -> Features:
    values, vectors = np.linalg.eigh(symmetric)
    return np.asarray((vectors * np.sqrt(values.clip(0))) @ vectors.T)


def precision_recall(real: Features, generated: Features) -> PrecisionRecall:
    """Return the share of each set that lies within the other's manifold.

    A point lies within a manifold if it is no further from one of its points than that point's
    third neighbour in its own set is.
    """
    return PrecisionRecall(_share_within(generated, real), _share_within(real, generated))


def _share_within(points: Features, manifold: Features) -> float:
    own = pairwise_distances(manifold, manifold)
    radius = np.partition(own, NEIGHBOUR, axis=1)[:, NEIGHBOUR]  # a point is its own neighbour 0
    within = pairwise_distances(points, manifold) <= radius
    return float(within.any(axis=1).mean())


def nearest_distances(points: Features, reference: Features) -> Features:
    """Return each point's root-mean-square distance to the nearest of `reference`, (N,)."""
    nearest = pairwise_distances(points, reference).min(axis=1)
    return np.asarray(nearest / np.sqrt(points.shape[1]))


def pairwise_distances(a: Features, b: Features) -> Features:
    """Return Euclidean distances (len(a), len(b))."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.asarray(np.sqrt(squares.clip(0)))
