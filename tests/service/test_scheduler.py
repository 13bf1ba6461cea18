"""Facts of the scheduler: who enters the slots, when, and how long it takes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import PRESETS, ImageRequest
from service.jobs import PRIORITY_LEADS_S, Job, Priority
from service.scheduler import LIFETIME_S, Image, Scheduler
from tests.service.fakes import FakeClock

NUM_STEPS = 8
SAMPLING = PRESETS["digits"].sampling
SPREAD_S = max(PRIORITY_LEADS_S.values()) - min(PRIORITY_LEADS_S.values())


def make_job(name: str, num_images: int = 1, priority: Priority = "normal") -> Job:
    """Make a job whose images take 8 steps each."""
    images = tuple(ImageRequest(class_id=0, seed=i, sampling=SAMPLING) for i in range(num_images))
    return Job(
        id=name,
        images=images,
        num_steps=NUM_STEPS,
        output_format="png",
        timeout_s=60,
        priority=priority,
    )


@dataclass
class Bench:
    """A scheduler, a clock, and an engine that takes `base_s + per_image_s x images` a step."""

    num_slots: int = 4
    target_step_s: float = 0.0
    base_s: float = 0.1
    per_image_s: float = 0.0
    clock: FakeClock = field(default_factory=FakeClock)
    drawn: dict[Image, int] = field(default_factory=dict)  # of the images in the slots
    entered: list[str] = field(default_factory=list)  # job ids, as their images got slots
    finished: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # of the steps

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            num_slots=self.num_slots, target_step_s=self.target_step_s, clock=self.clock
        )

    def add(self, *jobs: Job) -> None:
        for job in jobs:
            self.scheduler.add(job, 0.0)

    def step(self) -> None:
        """Admit what may enter and make one step."""
        for image in self.scheduler.next_images():
            self.drawn[image] = 0
            self.entered.append(image.job.id)
        self.sizes.append(len(self.drawn))
        if not self.drawn:
            return
        seconds = self.base_s + self.per_image_s * len(self.drawn)
        self.clock.now += seconds
        self.drawn = {image: drawn + 1 for image, drawn in self.drawn.items()}
        shares = {image: drawn / NUM_STEPS for image, drawn in self.drawn.items()}
        self.scheduler.advance(shares, [seconds])
        full = [image for image, drawn in self.drawn.items() if drawn == NUM_STEPS]
        for image in full:
            del self.drawn[image]
            self.finished.append(image.job.id)
        self.scheduler.finish(full)

    def drop(self, job_id: str) -> None:
        for image in self.scheduler.drop(job_id):
            del self.drawn[image]

    def run(self) -> None:
        """Step until nothing is left."""
        while self.scheduler.job_ids:
            self.step()


def measured(**given: float) -> Bench:
    """Return a bench that has finished an image: its step time is known."""
    bench = Bench(**given)  # type: ignore[arg-type]
    bench.add(make_job("first"))
    bench.run()
    bench.entered.clear()
    bench.finished.clear()
    bench.sizes.clear()
    return bench


priorities = st.sampled_from(sorted(PRIORITY_LEADS_S))
events = st.lists(
    st.one_of(
        st.tuples(st.just("job"), st.integers(1, 9), priorities),
        st.tuples(st.just("steps"), st.integers(1, 20), st.none()),
        st.tuples(st.just("drop"), st.integers(0, 9), st.none()),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(events=events, num_slots=st.integers(1, 5), target_step_s=st.sampled_from([0.0, 0.13]))
def test_every_image_gets_one_slot_and_no_slot_two_images(
    events: list[tuple[str, int, Priority | None]], num_slots: int, target_step_s: float
) -> None:
    """Whatever comes and goes: never more images than slots, each image runs once, all end."""
    bench = Bench(num_slots=num_slots, target_step_s=target_step_s, per_image_s=0.01)
    sizes: dict[str, int] = {}
    dropped = set()
    for index, (kind, number, priority) in enumerate(events):
        if kind == "job" and priority:
            sizes[str(index)] = number
            bench.add(make_job(str(index), number, priority))
        elif kind == "steps":
            for _ in range(number):
                bench.step()
        elif bench.scheduler.job_ids:
            victim = bench.scheduler.job_ids[number % len(bench.scheduler.job_ids)]
            bench.drop(victim)
            dropped.add(victim)
    bench.run()
    assert max(bench.sizes, default=0) <= num_slots
    assert (0, 0) == (bench.scheduler.num_running, bench.scheduler.steps_left)
    for name, number in sizes.items():
        if name in dropped:
            assert bench.entered.count(name) <= number
        else:
            assert (number, number) == (bench.entered.count(name), bench.finished.count(name))


@settings(deadline=None)
@given(
    num_slots=st.integers(1, 4),
    rival=st.tuples(st.integers(1, 9), priorities),
    own=st.tuples(st.integers(1, 5), priorities),
)
def test_nobody_starves(
    num_slots: int, rival: tuple[int, Priority], own: tuple[int, Priority]
) -> None:
    """Whoever else keeps coming, a job has all its slots once it is older than any lead, plus the
    time in which the engine could have made its images and those that came before."""
    bench = measured(num_slots=num_slots)
    image_s = NUM_STEPS * bench.base_s
    bench.add(make_job("own", *own))
    started = bench.clock.now
    before = 0
    for index in range(10**6):
        waiting = 9 * (len(bench.scheduler.job_ids) + 1)
        if waiting < 40 * num_slots:  # more than can be made, for ever
            bench.add(make_job(str(index), *rival))
            before += rival[0] if bench.clock.now < started + SPREAD_S + own[0] * image_s else 0
        bench.step()
        if bench.entered.count("own") == own[0]:
            break
    bound = SPREAD_S + (own[0] + before + num_slots) * image_s / num_slots + own[0] * image_s
    assert bench.clock.now - started <= bound


def test_the_older_job_is_first() -> None:
    """Among equals those who waited longer, in the queue or here, enter first."""
    bench = Bench(num_slots=1)
    bench.scheduler.add(make_job("young"), waited_s=1.0)
    bench.scheduler.add(make_job("old"), waited_s=2.0)
    bench.run()
    assert ["old", "young"] == bench.entered


def test_priority_is_a_lead_that_age_overcomes() -> None:
    """A higher priority goes first, but not before one that has waited for the lead's time."""
    bench = Bench(num_slots=1)
    lead_s = PRIORITY_LEADS_S["high"]
    bench.scheduler.add(make_job("old"), waited_s=lead_s + 1)
    bench.scheduler.add(make_job("young"), waited_s=lead_s - 1)
    bench.scheduler.add(make_job("low", priority="low"), waited_s=lead_s)
    bench.scheduler.add(make_job("high", priority="high"), waited_s=0.0)
    bench.run()
    assert ["old", "high", "young", "low"] == bench.entered


def test_one_image_does_not_wait_for_a_job_of_many() -> None:
    """Who comes while a large job runs gets the next slot, not the one after its last image."""
    bench = measured(num_slots=2)
    bench.add(make_job("many", 20))
    for _ in range(NUM_STEPS + 1):
        bench.step()
    bench.add(make_job("one"))
    bench.run()
    assert "one" in bench.entered[4:6]


def test_two_large_jobs_share_the_slots() -> None:
    """Jobs of many images that came together take turns."""
    bench = measured(num_slots=2)
    bench.add(make_job("a", 6), make_job("b", 6))
    bench.run()
    assert all({"a", "b"} == set(bench.entered[i : i + 2]) for i in range(0, 12, 2))


def test_a_dropped_job_never_enters() -> None:
    """A cancelled job loses its slots and what it waited for."""
    bench = Bench(num_slots=2)
    bench.add(make_job("a", 3), make_job("b"))
    bench.step()
    running = bench.scheduler.drop("a")
    assert [0, 1] == sorted(image.index for image in running)
    bench.drawn.clear()
    bench.run()
    assert ["a", "a", "b"] == bench.entered


def claims(bench: Bench, jobs: Iterator[Job]) -> None:
    """Claim as a worker does: jobs until they have as many images as there is room for."""
    room = bench.scheduler.room()
    while room > 0:
        job = next(jobs)
        bench.add(job)
        room -= len(job.images)


def test_no_more_is_claimed_than_soon_admitted() -> None:
    """Room is for the places that are free, less the jobs that wait for them already."""
    bench = Bench(num_slots=4)
    assert 4 == bench.scheduler.room()
    bench.add(make_job("a"), make_job("b", 2))
    assert 1 == bench.scheduler.room()
    bench.step()
    assert 1 == bench.scheduler.room()
    bench.add(make_job("c"))
    bench.step()
    assert 0 == bench.scheduler.room()


def test_a_job_of_many_does_not_stop_claims() -> None:
    """A place that comes free is competed for by the queue, though images wait here already."""
    bench = measured(num_slots=2)
    bench.add(make_job("many", 20))
    for _ in range(NUM_STEPS):
        bench.step()
    assert 2 == bench.scheduler.room()


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 20), min_size=30, max_size=30), num_slots=st.integers(1, 4))
def test_what_a_worker_holds_is_bounded(sizes: list[int], num_slots: int) -> None:
    """However large the jobs, at most twice as many wait at a worker as there are slots."""
    bench = measured(num_slots=num_slots)
    jobs = (make_job(str(i), size) for i, size in enumerate(sizes * 10))
    for _ in range(10 * NUM_STEPS):
        claims(bench, jobs)
        bench.step()
        assert len(bench.scheduler.job_ids) <= 3 * num_slots


@settings(deadline=None)
@given(
    target_ms=st.integers(1, 500),
    base_ms=st.integers(1, 200),
    per_image_ms=st.integers(1, 50),
    num_slots=st.integers(1, 12),
)
def test_a_target_holds_steps_short(
    target_ms: int, base_ms: int, per_image_ms: int, num_slots: int
) -> None:
    """With a target, steps grow to the most images within it, and one beyond only to learn."""
    bench = Bench(
        num_slots=num_slots,
        target_step_s=(target_ms + 0.5) / 1000,  # off the times that steps can take
        base_s=base_ms / 1000,
        per_image_s=per_image_ms / 1000,
    )
    bench.add(make_job("many", 60))
    bench.run()
    within = max(1, min(num_slots, (target_ms - base_ms) // per_image_ms))
    assert 1 <= min(bench.sizes)
    assert within <= max(bench.sizes) <= min(within + 1, num_slots)


def test_one_image_runs_however_short_the_target() -> None:
    """A target that no step can meet does not stop the service."""
    bench = Bench(target_step_s=0.001)
    bench.add(make_job("a", 3))
    bench.run()
    assert {1, 2} >= set(bench.sizes)
    assert 3 == len(bench.finished)


def test_a_slow_step_is_not_held_against_its_size_for_ever() -> None:
    """After a while an old measurement is doubted and the size is tried again."""
    bench = Bench(num_slots=2, target_step_s=0.15)
    bench.add(make_job("a", 2))
    bench.step()
    bench.base_s = 5.0  # a hiccup, at the first step of two
    bench.step()
    hiccup_at, bench.base_s = bench.clock.now, 0.1
    bench.run()
    bench.sizes.clear()
    bench.add(make_job("b", 200))
    while bench.clock.now < hiccup_at + LIFETIME_S - 1:
        bench.step()
    assert 1 == max(bench.sizes)
    bench.sizes.clear()
    for _ in range(5 * NUM_STEPS):
        bench.step()
    assert [2] * 3 * NUM_STEPS == bench.sizes[2 * NUM_STEPS :]


def test_without_a_target_all_slots_are_filled() -> None:
    """0 means throughput: no measurement keeps a slot empty."""
    bench = Bench(num_slots=4, per_image_s=10.0)
    bench.add(make_job("a", 4))
    bench.step()
    assert [4] == bench.sizes


def test_progress_is_the_share_of_tokens_drawn() -> None:
    """A job's progress counts the tokens of all its images, exactly."""
    bench = Bench(num_slots=2)
    bench.add(make_job("a", 3))
    shares = []
    while bench.scheduler.job_ids:
        shares.append(bench.scheduler.progress()["a"].share)
        bench.step()
    drawn = [min(2 * k, 16) + max(0, k - 8) for k in range(16)]
    assert pytest.approx([n / 24 for n in drawn]) == shares


def test_time_left_is_measured_time() -> None:
    """What is left is its steps, after those of images that enter before, times the step time."""
    bench = measured(num_slots=2)
    bench.add(make_job("a", 2), make_job("b"))
    bench.step()
    left = {name: progress.eta_s for name, progress in bench.scheduler.progress().items()}
    assert pytest.approx({"a": 15 * 0.1, "b": 7 * 0.1}) == left
    bench.run()
    assert pytest.approx(100 + 8 * 0.1 + 16 * 0.1) == bench.clock.now


def test_time_left_is_unknown_before_the_first_step() -> None:
    """Nothing is guessed."""
    bench = Bench()
    bench.add(make_job("a"))
    assert bench.scheduler.progress()["a"].eta_s is None


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), num_slots=st.integers(1, 4))
def test_time_left_is_never_wrong_by_more_than_a_slot_costs(
    sizes: list[int], num_slots: int
) -> None:
    """The forecast for jobs that came together is within the time of one image."""
    bench = measured(num_slots=num_slots)
    bench.add(*(make_job(str(index), size) for index, size in enumerate(sizes)))
    started = bench.clock.now
    forecasts = {name: progress.eta_s for name, progress in bench.scheduler.progress().items()}
    ended: dict[str, float] = {}
    while bench.scheduler.job_ids:
        bench.step()
        for name in forecasts.keys() - ended.keys() - set(bench.scheduler.job_ids):
            ended[name] = bench.clock.now - started
    for name, forecast in forecasts.items():
        assert forecast is not None
        assert abs(forecast - ended[name]) <= NUM_STEPS * bench.base_s + 1e-6
