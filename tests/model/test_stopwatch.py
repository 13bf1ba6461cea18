"""Facts of the stopwatch."""

from types import SimpleNamespace

import pytest
import torch

from model import stopwatch as stopwatch_module
from model.stopwatch import Stopwatch


def test_stages_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage has its own sum of the time that its blocks took."""
    now = 10.0
    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr(stopwatch_module, "time", clock)
    stopwatch = Stopwatch(torch.device("cpu"))
    for seconds in (0.5, 0.25):
        with stopwatch.measure("head"):
            now += seconds
        now += 7.0
    with stopwatch.measure("trunk"):
        now += 2.0
    assert {"head": 0.75, "trunk": 2.0} == stopwatch.seconds


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
