"""Facts of the stopwatch."""

import time

import pytest
import torch

from model.stopwatch import Stopwatch


def test_stages_add_up() -> None:
    """Each stage has its own sum, of at least the time that its blocks took."""
    stopwatch = Stopwatch(torch.device("cpu"))
    started = time.perf_counter()
    for _ in range(2):
        with stopwatch.measure("head"):
            time.sleep(0.002)
    with stopwatch.measure("trunk"):
        pass
    elapsed = time.perf_counter() - started
    assert {"head", "trunk"} == set(stopwatch.seconds)
    assert 0.004 <= stopwatch.seconds["head"] <= elapsed
    assert stopwatch.seconds["trunk"] < stopwatch.seconds["head"]


def test_a_stage_that_fails_is_not_counted() -> None:
    """An exception passes through, and the time until it is nobody's."""
    stopwatch = Stopwatch(torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), stopwatch.measure("head"):
        raise ZeroDivisionError
    assert {} == stopwatch.seconds


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_only_the_processor_is_timed(device: str) -> None:
    """On other devices nothing is measured, for a synchronisation would break a capture."""
    stopwatch = Stopwatch(torch.device(device))
    with stopwatch.measure("head"):
        pass
    assert {} == stopwatch.seconds
