"""Facts of answers that depend on more than a running service shows."""

import pytest

from service.answers import Answering
from service.jobs import JobOutcome, JobResult, JobState, JobTimings, JobView, KnownJob
from tests.service.fakes import fake_info
from tests.service.queue_ends import job

TIMINGS = JobTimings(queue_s=2.0, generation_s=3.0, decode_s=0.5, encode_s=0.1)


@pytest.mark.parametrize("created_at", [0.0, 1000.0, 5000.0])
def test_a_total_is_measured_by_one_clock(created_at: float) -> None:
    """What the API's clock said when the job was made does not lengthen or shorten it."""
    outcome = JobOutcome(
        state=JobState.SUCCEEDED, result=JobResult(images=(b"image",), timings=TIMINGS)
    )
    view = JobView(
        version=3, state=outcome.state, share=1.0, eta_s=None, queue_position=None,
        partials=(), outcome=outcome,
    )  # fmt: skip
    known = KnownJob(
        job=job("a", created_at=created_at), view=view, started_at=1002.0, ended_at=1006.0
    )
    timings = Answering(fake_info(), "").generation(known).timings
    assert timings
    assert 6.0 == timings.total_s
