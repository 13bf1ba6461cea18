"""How fast a run says it is."""

import torch

from training.pace import Pace


class Clock:
    """A clock that stands still until it is moved."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_only_steps_count() -> None:
    """Two steps of 3 s, 1 s of each waiting, with a minute of measuring between: 10 images in 6 s;
    afterwards counting begins anew, and the total stays."""
    clock = Clock()
    pace = Pace(5, torch.device("cpu"), clock)
    for _ in range(2):
        with pace.step() as fetched:
            clock.now_s += 1
            fetched()
            clock.now_s += 2
        clock.now_s += 60
    figures = pace.take()
    assert round(10 / 6, 3) == figures["images_per_s"]
    assert round(1 / 3, 4) == figures["data_wait"]
    assert figures["memory_mb"] > 10
    assert "gpu_memory_mb" not in figures
    assert 0 == pace.take()["images_per_s"]
    assert (10, 6, 2) == (pace.total.images, pace.total.taken_s, pace.total.waited_s)


def test_a_step_that_failed_does_not_count() -> None:
    """A step that raised is in no figure."""
    pace = Pace(5, torch.device("cpu"))
    try:
        with pace.step():
            raise ValueError
    except ValueError:
        pass
    assert 0 == pace.total.images
