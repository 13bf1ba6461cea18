"""Distances between clouds of features, against closed forms."""

import numpy as np
import pytest
import torch
from torch import Tensor

from training import sample_metrics
from training.sample_metrics import (
    Features,
    Gaussian,
    frechet_distance,
    gaussian_of,
    nearest_distances,
    pairwise_distances,
    precision_recall,
)

RANDOM = np.random.default_rng(0)


def distance(a: Features, b: Features) -> float:
    """Return the distance of the Gaussians that are fitted to two sets."""
    return frechet_distance(gaussian_of(a), gaussian_of(b))


def test_frechet_distance_of_known_gaussians() -> None:
    """Between N(0, diag(1, 4)) and N((3, 4), diag(9, 16)) it is 25 + (1 - 3)² + (2 - 4)² = 33."""
    a = Gaussian(np.zeros(2), np.diag([1.0, 4.0]))
    b = Gaussian(np.array([3.0, 4.0]), np.diag([9.0, 16.0]))
    assert 33.0 == pytest.approx(frechet_distance(a, b))


def test_frechet_distance_of_singular_gaussians() -> None:
    """Where a covariance has no inverse the trace formula still holds: of commuting diagonals
    (1, 0) and (4, 9) it is 1 + 9."""
    a, b = (Gaussian(np.zeros(2), np.diag(values)) for values in ([1.0, 0.0], [4.0, 9.0]))
    assert 10.0 == pytest.approx(frechet_distance(a, b))


def test_gaussians_of_other_features_do_not_compare() -> None:
    """Two features against three is an error that says so."""
    a, b = (Gaussian(np.zeros(n), np.eye(n)) for n in (2, 3))
    with pytest.raises(ValueError, match="2 features do not compare with 3"):
        frechet_distance(a, b)


def test_frechet_distance_of_a_set_to_itself_is_zero() -> None:
    """Equal sets have distance 0."""
    points = RANDOM.normal(size=(50, 4))
    assert 0.0 == pytest.approx(distance(points, points), abs=1e-9)


def test_frechet_distance_sees_the_mean() -> None:
    """Shifted by (3, 4, 0), the distance is 25."""
    points = RANDOM.normal(size=(50, 3))
    assert 25.0 == pytest.approx(distance(points, points + np.array([3.0, 4.0, 0.0])))


def test_frechet_distance_sees_the_covariance() -> None:
    """Scaled about its mean by s, the distance is (s - 1)² tr Σ, correlated or not."""
    points = RANDOM.normal(size=(200, 3)) @ RANDOM.normal(size=(3, 3))
    points -= points.mean(axis=0)
    trace = np.trace(np.cov(points, rowvar=False))
    assert 4 * trace == pytest.approx(distance(points, 3 * points))


def test_frechet_distance_of_rotated_gaussians() -> None:
    """For covariances that do not commute it is the trace formula's value, from scipy's root."""
    a = RANDOM.normal(size=(400, 2)) * [3.0, 1.0]
    b = RANDOM.normal(size=(400, 2)) @ np.array([[1.0, 0.9], [0.0, 0.5]])
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr (AB)^½ of 2×2 matrices from trace and determinant: sqrt(tr AB + 2 sqrt(det AB))
    product = cov_a @ cov_b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    means = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    expected = means + np.trace(cov_a) + np.trace(cov_b) - 2 * root
    assert expected == pytest.approx(distance(a, b))
    assert distance(b, a) == pytest.approx(distance(a, b))


def test_too_few_rows_are_refused() -> None:
    """Four rows of four features have no full covariance."""
    with pytest.raises(ValueError, match="4 rows of 4 features"):
        gaussian_of(RANDOM.normal(size=(4, 4)))


def normal(*size: int) -> Tensor:
    """Draw points."""
    return torch.from_numpy(RANDOM.normal(size=size)).float()


def test_precision_and_recall_of_the_same_set_are_one() -> None:
    """A set lies within its own manifold."""
    points = normal(60, 3)
    assert (1.0, 1.0) == precision_recall(points, points)


def test_lost_half_costs_recall_and_noise_costs_precision() -> None:
    """Of two far clusters, one generated: recall ½; half of the samples far away: precision ½."""
    here, there = normal(40, 2), normal(40, 2) + 100
    real = torch.cat([here, there])
    assert (1.0, 0.5) == precision_recall(real, here)
    far = here + torch.tensor([50.0, 0.0])
    assert (0.5, 0.5) == precision_recall(real, torch.cat([here, far]))


def test_precision_and_recall_of_points_on_a_line() -> None:
    """Real 0 1 2 3 10 have radii 3 2 2 3 9, generated 0.5 4 25 26 27 radii 25.5 22 21 22 23: the
    first two generated are within a real radius; every real point is within that of 4."""
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]])
    generated = torch.tensor([[0.5], [4.0], [25.0], [26.0], [27.0]])
    assert (0.4, 1.0) == pytest.approx(precision_recall(real, generated))


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of seven rows it is what a loop over all pairs finds."""
    real, generated = normal(50, 4), normal(40, 4) * 1.5
    radii = torch.cdist(real.double(), real.double()).sort(dim=1).values[:, 3]
    within = torch.cdist(generated.double(), real.double()) <= radii
    monkeypatch.setattr(sample_metrics, "BLOCK_ROWS", 7)
    precision, recall = precision_recall(real, generated)
    assert within.any(dim=1).double().mean().item() == precision
    assert precision_recall(generated, real) == (recall, precision)
    assert 0 < precision < 1


def test_a_manifold_needs_four_points() -> None:
    """Three points have no third neighbours."""
    with pytest.raises(ValueError, match="more than 3 points, got 3"):
        precision_recall(normal(9, 2), normal(3, 2))


def test_nearest_distance_is_per_feature() -> None:
    """The nearest of two points at distances 4 and 10, over 4 features, is 2 root-mean-square."""
    reference = np.array([[4.0, 0, 0, 0], [0, 10.0, 0, 0]])
    assert [2.0] == nearest_distances(np.zeros((1, 4)), reference).tolist()


def test_pairwise_distances() -> None:
    """Distances are Euclidean, rows against columns."""
    a, b = RANDOM.normal(size=(5, 3)), RANDOM.normal(size=(4, 3))
    expected = [[np.linalg.norm(x - y) for y in b] for x in a]
    assert np.allclose(expected, pairwise_distances(a, b))
