"""What each verb of the queue costs its server: seconds of its one thread, as measured."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

MEASURED = Path(__file__).parent / "costs.json"


@dataclass(frozen=True, kw_only=True)
class VerbCosts:
    """Seconds of the server for one call; those that end in a plural thing are for each of it."""

    admit: float
    listen: float  # a worker begins to wait for the bell, or the wait ends
    claim: float  # that finds nothing
    claimed_job: float  # each job that it finds
    stage: float  # with the image's bytes
    complete: float
    read: float  # the API's look at a job with its result
    forget: float
    progress: float
    progress_job: float
    renew: float
    renew_job: float
    heartbeat: float
    reap: float
    look_job: float  # the API's look at a job that somebody waits for
    workers: float  # the API's look at the workers
    workers_each: float

    @classmethod
    def free(cls) -> Self:
        """Return a server that takes no time for anything."""
        return cls(**dict.fromkeys(cls.__dataclass_fields__, 0.0))

    @classmethod
    def load(cls, result: str, path: Path = MEASURED) -> Self:
        """Return what was measured with results of a size, by its name in the file."""
        return cls(**json.loads(path.read_text("utf-8"))["seconds"][result])

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @property
    def job(self) -> float:
        """What a job costs that is claimed with others: the bound of a server's jobs a second."""
        return self.admit + self.claimed_job + self.stage + self.complete + self.read + self.forget
