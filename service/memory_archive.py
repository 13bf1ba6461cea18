"""What the queue in memory remembers: ended jobs, and what idempotency keys stand for.

Below `MemoryJobQueue`, beside the book of the jobs that have not ended. A job's images go first,
then its record, then the key that it was asked for with; all of it is bounded, in number and in
bytes, because nobody restarts a process to make it forget.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain

from service.jobs import IdempotencyKey, JobState
from service.memory_record import Record
from service.queue_policy import QueuePolicy, key_mismatch

MAX_KEYS = 100_000
MAX_RESULT_BYTES = 256 * 2**20  # of all ended jobs' images; beyond it the oldest go early

Line = OrderedDict[str, Record]  # the first is the first to be let go


class Archive:
    """The ended jobs of which there is a record; those with the same time to live in one line."""

    def __init__(self, policy: QueuePolicy, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._answered: Line = OrderedDict()
        self._ended: Line = OrderedDict()
        self._dead: Line = OrderedDict()
        self._with_images: Line = OrderedDict()
        self._num_bytes = 0

    def add(self, record: Record) -> None:
        """Keep a job that has just ended."""
        job_id = record.job.id
        is_dead = record.state is JobState.DEAD
        record.kept_since = record.ended_at
        (self._dead if is_dead else self._ended)[job_id] = record
        if record.num_bytes:
            self._with_images[job_id] = record
            self._num_bytes += record.num_bytes
        self.tidy()

    def find(self, job_id: str) -> Record | None:
        lines = self._ended, self._answered, self._dead
        return next((line[job_id] for line in lines if job_id in line), None)

    def records(self) -> Iterator[Record]:
        """Yield all, in no order."""
        return chain(self._answered.values(), self._ended.values(), self._dead.values())

    def dead_letters(self) -> list[Record]:
        """Return the jobs that were given up and not tried again, the oldest first."""
        return [record for record in self._dead.values() if record.retried_as is None]

    def answered(self, job_id: str) -> None:
        """Keep a job only as long as a repeated request may ask for it, unless it is dead."""
        record, now = self._ended.get(job_id), self._clock()
        # What goes sooner in any case stays where it is: an answer never lengthens a life.
        if (
            record
            and record.kept_since + self._policy.record_ttl_s > now + self._policy.answered_ttl_s
        ):
            del self._ended[job_id]
            record.kept_since = now
            self._answered[job_id] = record

    def tidy(self) -> None:
        """Let go of what is late or beyond the bounds, of answered jobs first."""
        policy, now = self._policy, self._clock()
        lines = (
            (self._answered, policy.answered_ttl_s),
            (self._ended, policy.record_ttl_s),
            (self._dead, policy.dead_ttl_s),
        )
        num_beyond = sum(len(line) for line, _ in lines) - policy.max_records
        for line, ttl_s in lines:
            while line and (num_beyond > 0 or now >= _first(line).kept_since + ttl_s):
                _, record = line.popitem(last=False)
                self._drop_images(record)
                num_beyond -= 1
        while self._with_images and (
            self._num_bytes > MAX_RESULT_BYTES
            or now >= _first(self._with_images).ended_at + policy.result_ttl_s
        ):
            self._drop_images(_first(self._with_images))

    def _drop_images(self, record: Record) -> None:
        if self._with_images.pop(record.job.id, None):
            self._num_bytes -= record.num_bytes
            record.drop_images()


def _first(line: Line) -> Record:
    return next(iter(line.values()))


class IdempotencyKeys:
    """Which job each client's key stands for."""

    def __init__(self, ttl_s: float, clock: Callable[[], float]) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        # In the order in which they expire.
        self._known: OrderedDict[tuple[str, str], tuple[str, str, float]] = OrderedDict()

    def find(self, owner: str, key: IdempotencyKey) -> str | None:
        """Return the id of the job that `key` stands for, None if it stands for none.

        Raises: IdempotencyMismatch if that was another request.
        """
        job_id, fingerprint, _ = self._known.get((owner, key.key_hash), (None, "", 0.0))
        if job_id is not None and fingerprint != key.fingerprint:
            raise key_mismatch()
        return job_id

    def knows(self, owner: str, key: IdempotencyKey) -> bool:
        """Say whether `key` stands for any request of `owner`."""
        return (owner, key.key_hash) in self._known

    def add(self, owner: str, key: IdempotencyKey, job_id: str) -> None:
        """Let `key` stand for a job from now on."""
        name = owner, key.key_hash
        self._known[name] = job_id, key.fingerprint, self._clock() + self._ttl_s
        self._known.move_to_end(name)
        if len(self._known) > MAX_KEYS:
            self._known.popitem(last=False)

    def tidy(self) -> None:
        """Forget keys whose time is over."""
        while self._known and self._clock() >= next(iter(self._known.values()))[2]:
            self._known.popitem(last=False)
