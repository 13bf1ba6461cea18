"""Where every job of the queue in memory is that has not ended, and the few ways in which it moves.

Below `MemoryJobQueue`, which decides; here jobs only move, and keep the counts right by moving.
"""

import asyncio
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from service.jobs import Claim, JobOutcome, JobProgress, JobState
from service.logs import log_job
from service.memory_archive import Archive
from service.memory_record import NO_PROGRESS, Place, Record
from service.queue_policy import QueuePolicy


class Order:
    """Jobs that wait, the first to be claimed first; of suspects those with fewer crashes."""

    def __init__(self, *, by_crashes: bool = False) -> None:
        self._by_crashes = by_crashes
        self._places: list[tuple[tuple[int, Place], str]] = []
        self._records: dict[str, Record] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._records

    def records(self) -> list[Record]:
        """Return all, in no order."""
        return list(self._records.values())

    def add(self, record: Record) -> None:
        self._records[record.job.id] = record
        insort(self._places, self._key(record))

    def remove(self, record: Record) -> None:
        """Take a job out, wherever it stands."""
        del self._records[record.job.id]
        del self._places[self.index(record)]

    def _key(self, record: Record) -> tuple[tuple[int, Place], str]:
        return (record.crashes if self._by_crashes else 0, record.place), record.job.id

    def first(self) -> Record:
        return self._records[self._places[0][1]]

    def index(self, record: Record) -> int:
        """Return how many jobs are claimed before this one."""
        return bisect_left(self._places, self._key(record))

    def cost_before(self, record: Record) -> int:
        """Return what the jobs that are claimed before this one cost."""
        ahead = self._places[: self.index(record)]
        return sum(self._records[job_id].job.cost for _, job_id in ahead)


class Book:
    """Where every job is, and the few ways in which it moves."""

    def __init__(self, policy: QueuePolicy, clock: Callable[[], float], archive: Archive) -> None:
        self._policy = policy
        self._clock = clock
        self._archive = archive
        self.ready, self.solo, self.delayed = Order(), Order(by_crashes=True), Order()
        self.running: dict[str, Record] = {}
        self.unfinished: dict[str, Record] = {}
        self.owned: Counter[str] = Counter()  # unfinished jobs by owner
        self.num_ended: Counter[JobState] = Counter()
        self.cost_waiting = 0
        self.bell = asyncio.Event()  # rings when a job waits

    def find(self, job_id: str) -> Record | None:
        return self.unfinished.get(job_id) or self._archive.find(job_id)

    def known(self, job_id: str) -> Record:
        if record := self.find(job_id):
            return record
        raise KeyError(job_id)

    def held(self, claim: Claim) -> Record | None:
        """Return the job that `claim` holds, None if it holds none any more."""
        record = self.running.get(claim.job.id)
        return record if record and record.token == claim.token else None

    def _order_of(self, record: Record) -> Order:
        if record.delayed_until is not None:
            return self.delayed
        return self.solo if self.is_suspect(record) else self.ready

    def requeue(self, record: Record) -> None:
        record.state, record.token, record.progress = JobState.QUEUED, "", NO_PROGRESS
        record.started_at = None
        self._order_of(record).add(record)
        self.cost_waiting += record.job.cost
        record.touch()
        if record.delayed_until is None:
            self.bell.set()

    async def has_rung(self, timeout_s: float) -> bool:
        """Wait for the bell; return whether it rang within `timeout_s`, and silence it."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.bell.wait(), timeout_s)
        has_rung = self.bell.is_set()
        self.bell.clear()
        return has_rung

    def leave(self, record: Record) -> None:
        """Take a job out of wherever it is."""
        if record.state is JobState.RUNNING:
            del self.running[record.job.id]
        else:
            self._order_of(record).remove(record)
            self.cost_waiting -= record.job.cost

    def end(self, record: Record, outcome: JobOutcome) -> bool:
        """Enter the terminal state of `outcome`; the only way into one."""
        job, now = record.job, self._clock()
        self.leave(record)
        del self.unfinished[job.id]
        self.owned[job.owner] -= 1
        if not self.owned[job.owner]:
            del self.owned[job.owner]
        record.state, record.outcome, record.ended_at = outcome.state, outcome, now
        share = 1.0 if outcome.result else record.progress.share
        record.progress = JobProgress(share=share, eta_s=None)
        self.num_ended[outcome.state] += 1
        record.touch()
        self._archive.add(record)
        log_job(job.id, outcome.state, age_s=now - record.admitted_at, **outcome.log_fields())
        return True

    def jobs_of(self, owner: str) -> list[Record]:
        """Return the jobs of `owner` that are known, in no order."""
        known = [*self.unfinished.values(), *self._archive.records()]
        return [record for record in known if record.job.owner == owner]

    def is_suspect(self, record: Record) -> bool:
        return record.crashes >= self._policy.solo_from_crashes
