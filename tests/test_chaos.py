"""The soak, in the size that fits into two minutes."""

import random

import pytest

from tests import chaos


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_nothing_is_lost_whatever_dies() -> None:
    """1,000 jobs, 20 worker kills, 5 server kills, 5 pauses, 2 poisoned jobs: all as promised."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    report = chaos.run(1000, seed)
    assert {"succeeded": 1000, "dead": 2} == report["ended"]
