"""Distances between clouds of features, against closed forms."""

import numpy as np
import pytest

from training.sample_metrics import (
    frechet_distance,
    nearest_distances,
    pairwise_distances,
    precision_recall,
)

RANDOM = np.random.default_rng(0)


def test_frechet_distance_of_a_set_to_itself_is_zero() -> None:
    """Equal sets have distance 0."""
    points = RANDOM.normal(size=(50, 4))
    assert 0.0 == pytest.approx(frechet_distance(points, points), abs=1e-9)


def test_frechet_distance_sees_the_mean() -> None:
    """Shifted by (3, 4, 0), the distance is 25."""
    points = RANDOM.normal(size=(50, 3))
    assert 25.0 == pytest.approx(frechet_distance(points, points + np.array([3.0, 4.0, 0.0])))


def test_frechet_distance_sees_the_covariance() -> None:
    """Scaled about its mean by s, the distance is (s - 1)² tr Σ, correlated or not."""
    points = RANDOM.normal(size=(200, 3)) @ RANDOM.normal(size=(3, 3))
    points -= points.mean(axis=0)
    trace = np.trace(np.cov(points, rowvar=False))
    assert 4 * trace == pytest.approx(frechet_distance(points, 3 * points))


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
    assert expected == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))


def test_too_few_rows_are_refused() -> None:
    """Four rows of four features have no full covariance."""
    with pytest.raises(ValueError, match="second set has 4 rows of 4 features"):
        frechet_distance(RANDOM.normal(size=(50, 4)), RANDOM.normal(size=(4, 4)))


def test_precision_and_recall_of_the_same_set_are_one() -> None:
    """A set lies within its own manifold."""
    points = RANDOM.normal(size=(60, 3))
    assert (1.0, 1.0) == precision_recall(points, points)


def test_lost_half_costs_recall_and_noise_costs_precision() -> None:
    """Of two far clusters, one generated: recall ½; half of the samples far away: precision ½."""
    here, there = RANDOM.normal(size=(40, 2)), RANDOM.normal(size=(40, 2)) + 100
    real = np.concatenate([here, there])
    assert (1.0, 0.5) == precision_recall(real, here)
    assert (0.5, 0.5) == precision_recall(
        real, np.concatenate([here, here + np.array([50.0, 0.0])])
    )


def test_nearest_distance_is_per_feature() -> None:
    """The nearest of two points at distances 4 and 10, over 4 features, is 2 root-mean-square."""
    reference = np.array([[4.0, 0, 0, 0], [0, 10.0, 0, 0]])
    assert [2.0] == nearest_distances(np.zeros((1, 4)), reference).tolist()


def test_pairwise_distances() -> None:
    """Distances are Euclidean, rows against columns."""
    a, b = RANDOM.normal(size=(5, 3)), RANDOM.normal(size=(4, 3))
    expected = [[np.linalg.norm(x - y) for y in b] for x in a]
    assert np.allclose(expected, pairwise_distances(a, b))
