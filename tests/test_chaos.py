"""The soak, in the size that fits into two minutes of a machine that has nothing else to do."""

import random

import pytest

from tests import chaos


@pytest.mark.timeout(1800)
def test_nothing_is_lost_whatever_dies() -> None:
    """1,000 jobs, 20 worker kills, 5 server kills, 5 pauses between computed and stored, 2 jobs
    that kill their workers: every image arrives, only those two are dead, nothing is left over."""
    plan = chaos.Plan(seed=random.SystemRandom().randrange(2**32))
    print(plan)
    report = chaos.run(plan)
    assert {"succeeded": 1000, "dead": 2} == report["ended"]
    assert plan.deeds == report["deeds"]
