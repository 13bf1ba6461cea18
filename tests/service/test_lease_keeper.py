"""Facts of the thread that renews leases: what it renews, what it tells, and when it gives up."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from service import lease_keeper
from service.lease_keeper import RETRY_S, LeaseKeeper
from service.redis_scripts import Hold, QueueScripts
from tests.service.fakes import FakeClock

NOWHERE = "redis://127.0.0.1:1/0"  # the keeper connects when it first sends, which a fake does not
SOON_S = 10.0
A, B = ("a", "token-a"), ("b", "token-b")


class FakeScripts:
    """Notes what is to be renewed, and answers with `answers` in turn, at last for ever."""

    def __init__(self, *answers: list[str] | Exception) -> None:
        self._answers = list(answers) or [[]]
        self.renewed: queue.Queue[list[Hold]] = queue.Queue()

    def renew_blocking(self, client: object, worker: str, holds: Sequence[Hold]) -> list[str]:
        self.renewed.put(list(holds))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def next(self) -> list[Hold]:
        return self.renewed.get(timeout=SOON_S)


class Looks:
    """Returns what is held, and knows how often it was looked at."""

    def __init__(self, *holds: Hold) -> None:
        self.holds, self._looks = list(holds), threading.Semaphore(0)

    def __call__(self) -> list[Hold]:
        self._looks.release()
        return list(self.holds)

    def wait(self, number: int = 2) -> None:
        """Wait for further looks: at the second one all that followed the first is over."""
        while self._looks.acquire(blocking=False):
            pass
        for _ in range(number):
            assert self._looks.acquire(timeout=SOON_S)


class Pauses(threading.Event):
    """The keeper's sign to stop, which notes how long it waits for it, and does not wait long."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return super().wait(0.001)


@contextmanager
def keeping(
    scripts: FakeScripts,
    holds: Callable[[], Sequence[Hold]],
    *,
    lease_s: float = 0.06,
    stall_s: float = 60.0,
    on_lost: Callable[[list[Hold]], None] = lambda _: None,
    on_stall: Callable[[], None] = lambda: None,
    stopped: threading.Event | None = None,
) -> Iterator[LeaseKeeper]:
    """Run a keeper."""
    keeper = LeaseKeeper(
        cast("QueueScripts", scripts), NOWHERE, "worker", lease_s=lease_s, stall_s=stall_s,
        holds=holds, on_lost=on_lost, on_stall=on_stall,
    )  # fmt: skip
    keeper._stopped = stopped or keeper._stopped
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.stop()
        keeper._thread.join(SOON_S)
        assert not keeper._thread.is_alive()


def test_what_is_held_is_renewed_again_and_again() -> None:
    """Each time it looks at what is held then; when nothing is, it asks the server nothing."""
    scripts, looks = FakeScripts(), Looks(A)
    with keeping(scripts, looks):
        assert [A] == scripts.next()
        looks.holds.append(B)
        while scripts.next() != [A, B]:
            pass
        looks.holds.clear()
        looks.wait()  # a renewal may have been under way
        while not scripts.renewed.empty():
            scripts.next()
        looks.wait()
        assert scripts.renewed.empty()


def test_what_is_lost_is_told_with_its_token() -> None:
    """The worker hears which claims it has no more, and of no others."""
    lost: queue.Queue[list[Hold]] = queue.Queue()
    looks = Looks(A, B)
    with keeping(FakeScripts([], ["b"], []), looks, on_lost=lost.put):
        assert [B] == lost.get(timeout=SOON_S)
        looks.wait()
        assert lost.empty()


def test_a_server_that_does_not_answer_is_asked_again_soon(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Long before the next third of the lease: a short outage costs no lease; nothing is lost."""
    lost: queue.Queue[list[Hold]] = queue.Queue()
    scripts, pauses = FakeScripts(RedisConnectionError("away"), OSError("away"), []), Pauses()
    with keeping(scripts, lambda: [A], lease_s=3.0, on_lost=lost.put, stopped=pauses):
        for _ in range(4):
            scripts.next()
    assert [1.0, RETRY_S, RETRY_S, 1.0] == pauses.seconds[:4]
    assert lost.empty()
    assert 2 == caplog.text.count("leases were not renewed")


def test_a_silent_loop_loses_its_jobs_once(caplog: pytest.LogCaptureFixture) -> None:
    """Without a sign of life for the stall time nothing is renewed any more, and the process is
    told, once, from a thread that then has ended."""
    scripts, stalls = FakeScripts(), threading.Semaphore(0)
    with keeping(scripts, lambda: [A, B], stall_s=0.2, on_stall=stalls.release) as keeper:
        assert stalls.acquire(timeout=SOON_S)
        keeper._thread.join(SOON_S)
        while not scripts.renewed.empty():
            scripts.next()
        keeper.beat()
        assert not stalls.acquire(timeout=0.3)
        assert scripts.renewed.empty()
    assert "2 jobs are given up" in caplog.text


def test_a_loop_that_shows_life_keeps_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it beats in time, however long its jobs take."""
    clock, stalled, looks = FakeClock(), threading.Event(), Looks(A)
    monkeypatch.setattr(lease_keeper, "time", SimpleNamespace(monotonic=clock))
    with keeping(FakeScripts(), looks, stall_s=0.5, on_stall=stalled.set) as keeper:
        for _ in range(4):
            clock.now += 0.4
            looks.wait()
            keeper.beat()
        assert not stalled.is_set()
        clock.now += 0.6
        assert stalled.wait(SOON_S)


def test_a_worker_that_holds_nothing_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights takes longer than any step, and costs nobody a job."""
    clock, stalled, looks = FakeClock(), threading.Event(), Looks()
    monkeypatch.setattr(lease_keeper, "time", SimpleNamespace(monotonic=clock))
    with keeping(FakeScripts(), looks, stall_s=0.1, on_stall=stalled.set):
        clock.now += 600
        looks.wait()
        assert not stalled.is_set()


def test_it_may_be_stopped_from_its_own_thread() -> None:
    """Whoever is told of a stall may close everything, the keeper included."""
    stopped = threading.Event()

    def stop() -> None:
        keeper.stop()
        stopped.set()

    with keeping(FakeScripts(), lambda: [A], stall_s=0.1, on_stall=stop) as keeper:
        assert stopped.wait(SOON_S)
        keeper._thread.join(SOON_S)


def test_a_keeper_that_never_started_may_be_stopped() -> None:
    """A worker whose start fails ends like any other."""
    LeaseKeeper(
        cast("QueueScripts", FakeScripts()), NOWHERE, "worker", lease_s=1.0, stall_s=1.0,
        holds=list, on_lost=lambda _: None, on_stall=lambda: None,
    ).stop()  # fmt: skip
