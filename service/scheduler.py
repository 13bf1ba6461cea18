"""The scheduler: which claimed images enter the free slots, decided anew at every step.

The worker asks it how much to claim, what to admit, and tells it what steps took. It is pure
arithmetic on an injected clock: no torch, no queue, no threads.

Images go in the order of their *due times*, the earliest first: image i of a job is due i paces
after the job came, less its priority's lead. A pace is the time that the engine, full, takes per
image, so a job of many images asks for slots no faster than it could use an idle engine: jobs that
come meanwhile are due before its rest. What comes more than the largest lead after an image is due
is itself due later, so that nobody starves.
"""

import heapq
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from model.config import ImageRequest
from service.jobs import Job, JobProgress

SMOOTHING = 0.2  # weight of the newest step in a measured time
LIFETIME_S = 60.0  # of a measured time: one slow step must not keep slots empty for ever


@dataclass(frozen=True, eq=False)
class Image:
    """One image of a claimed job."""

    job: Job
    index: int

    @property
    def request(self) -> ImageRequest:
        return self.job.images[self.index]


class StepTimes:
    """What steps take, measured, by the number of images in them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._measured: dict[int, tuple[float, float]] = {}  # seconds, and when measured
        self.recent_s = 0.0

    def observe(self, num_images: int, seconds: float) -> None:
        """Record one step."""
        now = self._clock()
        old, measured_at = self._measured.get(num_images, (seconds, now))
        if now - measured_at > LIFETIME_S:
            old = seconds
        self._measured[num_images] = (old + SMOOTHING * (seconds - old), now)
        self.recent_s += (seconds - self.recent_s) * (SMOOTHING if self.recent_s else 1.0)

    def most_images(self, target_s: float) -> int:
        """Return the most images, at least 1, of which a step should take no more than `target_s`.

        Between measurements times lie on a line; beyond the last, one image more is tried.
        """
        points = self._points()
        candidates = range(2, 2 + (points[-1][0] if points else 0))
        return max((n for n in candidates if _height(points, n) <= target_s), default=1)

    def _points(self) -> list[tuple[int, float]]:
        """Return what is still believed, rising: a larger step that was faster is the truth."""
        oldest = self._clock() - LIFETIME_S
        points: list[tuple[int, float]] = []
        for n, (seconds, measured_at) in sorted(self._measured.items(), reverse=True):
            if measured_at >= oldest:
                points.append((n, min(seconds, points[-1][1]) if points else seconds))
        return points[::-1]


def _height(points: Sequence[tuple[int, float]], x: int) -> float:
    """Return the height at `x` of the line through `points`, level before the first."""
    if len(points) == 1 or x <= points[0][0]:
        return points[0][1]
    right = min(bisect_left(points, (x, 0.0)), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y1 + (y1 - y0) / (x1 - x0) * (x - x1)


@dataclass(eq=False)
class _HeldJob:
    """A claimed job with an image that is not finished."""

    job: Job
    came_at: float
    number: int  # in the order of claims
    next_index: int = 0  # of its first image that has no slot yet
    running: dict[Image, float] = field(default_factory=dict)  # and the share drawn of each

    @property
    def num_waiting(self) -> int:
        return len(self.job.images) - self.next_index

    @property
    def num_finished(self) -> int:
        return self.next_index - len(self.running)

    @property
    def share(self) -> float:
        """The share of the tokens of all images that are drawn."""
        return (self.num_finished + sum(self.running.values())) / len(self.job.images)

    @property
    def steps_left(self) -> float:
        """Of all its images together."""
        return (1 - self.share) * self.job.cost


class Scheduler:
    """Decides for one engine of `num_slots`.

    With `target_step_s` above 0, images are admitted only while a step of so many is predicted to
    take no longer; one at least always runs.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        target_step_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_slots, self._target_step_s, self._clock = num_slots, target_step_s, clock
        self._jobs: dict[str, _HeldJob] = {}
        self._claims = count()
        self._times = StepTimes(clock)

    @property
    def job_ids(self) -> list[str]:
        """The jobs that have an image waiting or running."""
        return list(self._jobs)

    @property
    def num_running(self) -> int:
        return sum(len(held.running) for held in self._jobs.values())

    @property
    def step_s(self) -> float:
        """The time of a recent step, smoothed; 0 before the first."""
        return self._times.recent_s

    @property
    def steps_left(self) -> int:
        """Steps of all waiting and running images together."""
        return round(sum(held.steps_left for held in self._jobs.values()))

    @property
    def is_learning(self) -> bool:
        """Whether the next step's time may let images in that wait now."""
        return self._target_step_s > 0 and any(held.num_waiting for held in self._jobs.values())

    def room(self) -> int:
        """Return how many images to claim now: those that would compete for the next places.

        Never more than there are places, and none while twice as many jobs as there are slots wait
        for the rest of their images: what a worker holds is bounded.
        """
        waiting = [held for held in self._jobs.values() if held.num_waiting]
        unstarted = sum(held.num_waiting for held in waiting if not held.next_index)
        return max(0, min(self._num_places() - unstarted, 2 * self._num_slots - len(waiting)))

    def add(self, job: Job, waited_s: float) -> None:
        """Take in a job that was claimed after `waited_s` seconds in the queue."""
        self._jobs[job.id] = _HeldJob(job, self._clock() - waited_s, next(self._claims))

    def drop(self, job_id: str) -> list[Image]:
        """Forget a job; return its images that are running."""
        return list(self._jobs.pop(job_id).running)

    def next_images(self) -> list[Image]:
        """Return the images that enter slots now; they count as running from here on."""
        waiting = [self._next(held) for held in self._jobs.values() if held.num_waiting]
        heapq.heapify(waiting)
        images = []
        for _ in range(self._num_places()):
            if not waiting:
                break
            _, _, held = waiting[0]
            image = Image(held.job, held.next_index)
            held.running[image] = 0.0
            held.next_index += 1
            images.append(image)
            if held.num_waiting:
                heapq.heapreplace(waiting, self._next(held))
            else:
                heapq.heappop(waiting)
        return images

    def advance(self, shares: Mapping[Image, float], step_times_s: Iterable[float]) -> None:
        """Note what steps took and the share of its tokens that each of their images now has."""
        for seconds in step_times_s:
            self._times.observe(len(shares), seconds)
        for image, share in shares.items():
            self._jobs[image.job.id].running[image] = share

    def finish(self, images: Iterable[Image]) -> None:
        """Take finished images out of their slots."""
        for image in images:
            held = self._jobs[image.job.id]
            del held.running[image]
            if held.num_finished == len(held.job.images):
                del self._jobs[image.job.id]

    def progress(self) -> dict[str, JobProgress]:
        """Return how far each job is, and the time left of it from the measured step time."""
        left = self._steps_until_done()
        return {
            job_id: JobProgress(
                share=held.share, eta_s=left[job_id] * self.step_s if self.step_s else None
            )
            for job_id, held in self._jobs.items()
        }

    def _num_places(self) -> int:
        """How many images may enter slots now."""
        most = self._num_slots
        if self._target_step_s:
            most = min(most, self._times.most_images(self._target_step_s))
        return max(0, most - self.num_running)

    def _due(self, held: _HeldJob, index: int) -> float:
        """Return when image `index` of a job is due, on this scheduler's clock."""
        pace_s = self.step_s / self._num_slots * held.job.num_steps
        return held.came_at - held.job.lead_s + index * pace_s

    def _next(self, held: _HeldJob) -> tuple[float, int, _HeldJob]:
        """Place a job's next image in the order; of two that are due at once, the older claim's."""
        return self._due(held, held.next_index), held.number, held

    def _steps_until_done(self) -> dict[str, float]:
        """Estimate, by job, the steps until its last image is finished.

        The slots count as one server that works off the images in their order.
        """
        left, ahead = dict.fromkeys(self._jobs, 0.0), 0.0
        for job_id, held in self._jobs.items():
            for share in held.running.values():
                steps = (1 - share) * held.job.num_steps
                left[job_id] = max(left[job_id], steps)
                ahead += steps
        capacity = max(1, self.num_running + self._num_places())
        waiting = [
            (self._due(held, index), held.number, held.job)
            for held in self._jobs.values()
            for index in range(held.next_index, len(held.job.images))
        ]
        for _, _, job in sorted(waiting, key=lambda entry: entry[:2]):
            left[job.id] = max(left[job.id], ahead / capacity + job.num_steps)
            ahead += job.num_steps
        return left
