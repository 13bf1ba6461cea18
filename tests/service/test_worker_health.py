"""Facts of a worker's health: what is alive, what has started, what is ready."""

from service.worker_health import WorkerHealth
from tests.service.fakes import FakeClock


def make_health(stall_s: float = 30.0) -> tuple[WorkerHealth, FakeClock]:
    """Make a health on a clock that stands still."""
    clock = FakeClock()
    return WorkerHealth(stall_s, clock=clock), clock


def test_a_worker_is_alive_while_it_loads_however_long() -> None:
    """Nothing is in flight, so nothing can hang."""
    health, clock = make_health()
    clock.now += 10_000
    assert health.why_not_live() is None
    assert "the worker is loading" == health.why_not_started() == health.why_not_ready()


def test_work_that_does_not_move_for_too_long_is_not_alive() -> None:
    """The bound counts from the last step, and from when work began."""
    health, clock = make_health(stall_s=30.0)
    health.enter("ready")
    clock.now += 10_000
    health.note_work(is_in_flight=True)
    clock.now += 30
    assert health.why_not_live() is None
    health.note_work(is_in_flight=True)  # a step ended
    clock.now += 31
    assert "no step has ended for 31 s while images are in flight" == health.why_not_live()
    assert health.why_not_live() == health.why_not_ready()
    assert 31 == health.stalled_s


def test_a_worker_at_rest_is_alive() -> None:
    """Without work no step need end."""
    health, clock = make_health()
    health.enter("ready")
    health.note_work(is_in_flight=True)
    health.note_work(is_in_flight=False)
    clock.now += 10_000
    assert health.why_not_live() is None
    assert health.why_not_ready() is None
    assert 0 == health.stalled_s


def test_an_unfit_worker_has_started_and_lives_and_is_not_ready() -> None:
    """To start it again would not mend it, and it must get no jobs."""
    health, _ = make_health()
    health.enter("warming_up")
    assert "the worker is warming up" == health.why_not_started()
    health.enter("ready")
    health.enter("unfit")
    assert (None, None) == (health.why_not_live(), health.why_not_started())
    assert "known image" in str(health.why_not_ready())
    health.enter("ready")
    assert health.why_not_ready() is None


def test_a_worker_that_never_was_ready_has_not_started() -> None:
    """Also when what it waits for is a known image that comes out wrong."""
    health, _ = make_health()
    health.enter("unfit")
    assert health.why_not_started() is not None


def test_a_stopping_worker_is_alive_and_not_ready() -> None:
    """It finishes what it has."""
    health, _ = make_health()
    health.enter("ready")
    health.is_stopping = True
    assert (None, "the worker is stopping") == (health.why_not_live(), health.why_not_ready())


def test_phases_of_the_start_are_timed_until_it_is_over() -> None:
    """A phase that lasts grows; after the start nothing is added."""
    health, clock = make_health()
    clock.now += 5
    assert {"loading": 5.0} == health.startup_s()
    health.enter("warming_up")
    clock.now += 2
    assert {"loading": 5.0, "warming_up": 2.0} == health.startup_s()
    health.enter("ready")
    clock.now += 100
    health.enter("unfit")
    clock.now += 100
    health.enter("ready")
    assert {"loading": 5.0, "warming_up": 2.0} == health.startup_s()


def test_the_canarys_age_counts_from_its_last_check() -> None:
    """Right or wrong."""
    health, clock = make_health()
    health.note_canary(is_right=False)
    clock.now += 7
    assert 7 == health.canary_age_s
    assert health.is_canary_right is False
