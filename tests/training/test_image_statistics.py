"""Sums over streams of images, against the same from all images at once, and torchmetrics."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from training import image_statistics
from training.extractors import ImageFeatures
from training.image_statistics import ClassScore, ImageStatistics, Moments
from training.processes import OneProcess
from training.sample_metrics import frechet_distance

BATCHES = (7, 1, 30, 12)


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    """Draw correlated rows far from zero, where sums of squares would cancel."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, width, generator=generator) @ torch.randn(
        width, width, generator=generator
    )
    return mixed + 1000


def split(values: Tensor) -> list[Tensor]:
    """Cut rows into batches of several sizes."""
    return list(values.split(BATCHES))


def test_moments_of_batches_are_those_of_all() -> None:
    """Mean and covariance of a stream are numpy's of the whole, to 1e-12."""
    values, moments = rows(50, 5), Moments()
    for batch in split(values):
        moments.add(batch)
    whole = values.double().numpy()
    mean, covariance = moments.gaussian()
    np.testing.assert_allclose(whole.mean(axis=0), mean, rtol=1e-12)
    np.testing.assert_allclose(np.cov(whole, rowvar=False), covariance, rtol=1e-10)


def test_one_image_has_no_covariance() -> None:
    """The message says how many there were."""
    moments = Moments()
    moments.add(rows(1, 3))
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        moments.gaussian()


def test_score_of_a_stream_is_that_of_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over splits of 20 of 50 images, batches crossing them, it is the mean of exp KL of each."""
    monkeypatch.setattr(image_statistics, "SPLIT_SIZE", 20)
    logits, score, first = rows(50, 6) / 300, ClassScore(), 0
    for batch in split(logits):
        score.add(first, batch)
        first += len(batch)
    expected = []
    for part in logits.double().softmax(dim=1).split(20):
        divergence = (part * (part.log() - part.mean(dim=0).log())).sum(dim=1).mean()
        expected.append(divergence.exp())
    assert torch.stack(expected).mean().item() == pytest.approx(score.value(), rel=1e-12)


def test_certain_and_even_classes_score_their_number() -> None:
    """Five classes, each certain and as frequent: 5. Always the same class: 1."""
    certain = torch.eye(5).repeat(4, 1) * 1000
    for logits, expected in ((certain, 5.0), (certain[:1].repeat(20, 1), 1.0)):
        score = ClassScore()
        score.add(0, logits)
        assert expected == pytest.approx(score.value())


class Flat(nn.Module):
    """For torchmetrics: an image's own values are its features."""

    num_features = 6

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double()


def test_distance_is_torchmetrics() -> None:
    """The Fréchet distance of two streams is that which torchmetrics computes."""
    theirs = FrechetInceptionDistance(feature=Flat()).set_dtype(torch.float64)
    ours = []
    for seed, is_real in ((0, True), (1, False)):
        values, moments = rows(60, 6, seed).double() - 1000, Moments()
        moments.add(values)
        ours.append(moments.gaussian())
        theirs.update(values.reshape(-1, 3, 1, 2), real=is_real)
    assert theirs.compute().item() == pytest.approx(frechet_distance(*ours), rel=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save all extracted features")
@pytest.mark.filterwarnings("ignore:std")  # of the one split
def test_score_is_torchmetrics() -> None:
    """The score of one split is that which torchmetrics computes."""
    logits, score = (rows(60, 6) - 1000).double(), ClassScore()
    theirs = InceptionScore(feature=Flat(), splits=1).set_dtype(torch.float64)
    theirs.update(logits.reshape(-1, 3, 1, 2))
    score.add(0, logits)
    assert theirs.compute()[0].item() == pytest.approx(score.value(), rel=1e-9)


def features(values: Tensor) -> ImageFeatures:
    """Make every kind of feature of the same rows."""
    return ImageFeatures(values[:, :4], values, values[:, :3])


def statistics(values: Tensor, batches: list[int], num_kept: int = 50) -> ImageStatistics:
    """Look at the batches of ten of these numbers."""
    kept = ImageStatistics(len(values), num_kept)
    for number in batches:
        part = values[10 * number : 10 * number + 10]
        kept.add(10 * number, features(part), torch.zeros(len(part), dtype=torch.int64))
    return kept


def gathered_rows(kept: ImageStatistics) -> list[Tensor]:
    """Record what a process would send the others, in order."""
    sent: list[Tensor] = []

    class Recording(OneProcess):
        def gathered(self, rows: Tensor) -> list[Tensor]:
            sent.append(rows)
            return [rows]

    kept.gathered(Recording())
    return sent


def test_shares_of_processes_make_the_whole() -> None:
    """Two processes with batches 0, 2, 4 and 1, 3 know together what one knows of all."""
    values = rows(50, 6) / 300
    whole, mine = statistics(values, [0, 1, 2, 3, 4]), statistics(values, [0, 2, 4])
    sent = iter(gathered_rows(statistics(values, [1, 3])))

    class Two(OneProcess):
        def gathered(self, rows: Tensor) -> list[Tensor]:
            return [rows, next(sent)]

    together = mine.gathered(Two())
    assert (50, whole.accuracy) == (together.count, together.accuracy)
    for ours, expected in ((together.pool, whole.pool), (together.spatial, whole.spatial)):
        np.testing.assert_allclose(
            expected.gaussian().covariance, ours.gaussian().covariance, rtol=1e-9
        )
    assert whole.score.value() == pytest.approx(together.score.value(), rel=1e-12)
    assert torch.equal(whole.features.sort(dim=0).values, together.features.sort(dim=0).values)


def test_a_process_without_images_adds_nothing() -> None:
    """One of two processes that had no batch at all changes no figure."""
    values = rows(50, 6) / 300
    whole = statistics(values, [0, 1, 2, 3, 4])
    empty = [torch.zeros(1, 2), torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(0, 0)]
    sent = iter([*empty, torch.zeros(0, 0), torch.zeros(1, 2, dtype=torch.float64)])

    class Two(OneProcess):
        def gathered(self, rows: Tensor) -> list[Tensor]:
            return [rows, next(sent)]

    together = whole.gathered(Two())
    assert whole.count == together.count
    np.testing.assert_array_equal(whole.pool.gaussian().mean, together.pool.gaussian().mean)
    assert torch.equal(whole.features, together.features)


def test_kept_features_are_spread_evenly() -> None:
    """Of 50 images ten are kept: every fifth, whatever the batches."""
    values = torch.arange(50.0)[:, None].repeat(1, 6)
    kept = statistics(values, [0, 1, 2, 3, 4], num_kept=10)
    assert [4.0 + 5 * i for i in range(10)] == kept.features[:, 0].tolist()
