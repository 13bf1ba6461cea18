"""`python -m tests.scaling`: the figures and pictures of docs/scaling.md; a minute or two.

`--measure` measures the verbs anew first, on a Redis server of its own, and keeps the result.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.scaling.costs import MEASURED, VerbCosts
from tests.scaling.measure import Measurement
from tests.scaling.plots import Curve, draw
from tests.scaling.simulation import Outcome, Scenario, Simulation
from tests.service.redis_server import RedisServer

IMAGES = Path(__file__).parents[2] / "docs" / "images"
FLEETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
NUM_JOBS = 20000  # that a point with random arrivals looks at, about


@dataclass(frozen=True)
class Kind:
    """A sort of worker. An image's time is an assumption: put in what `bar bench engine` says."""

    name: str
    num_slots: int
    image_s: float
    result: str  # the size of its results, by the name in costs.json

    def scenario(self, num_workers: int) -> Scenario:
        return Scenario(
            num_workers=num_workers, num_slots=self.num_slots, image_s=self.image_s,
            costs=VerbCosts.load(self.result),
        )  # fmt: skip

    @property
    def images_per_s(self) -> float:
        return self.num_slots / self.image_s


KINDS = (
    Kind("80 images/s, 1 kB (digits, one core)", 16, 0.2, "digits"),
    Kind("100 images/s, 110 kB (256 pixels)", 64, 0.64, "image 256"),
    Kind("10 images/s, 110 kB (256 pixels)", 64, 6.4, "image 256"),
    Kind("5 images/s, 440 kB (512 pixels)", 64, 12.8, "image 512"),
)


def main() -> None:
    """Simulate everything, print the tables, draw the pictures."""
    parser = argparse.ArgumentParser(prog="python -m tests.scaling")
    parser.add_argument("--measure", action="store_true", help="measure the verbs anew")
    if parser.parse_args().measure:
        measure()
    saturated()
    shares()
    idle()
    waiting()


def measure() -> None:
    """Measure the verbs on a server of our own and keep what they cost."""
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        measured = asyncio.run(Measurement(server.url).run())
    MEASURED.write_text(json.dumps(measured, indent=2) + "\n", "utf-8")


def saturated() -> None:
    """Draw what fleets make when there is always more to do, until their server is busy."""
    throughput, load = [], []
    for kind in KINDS:
        bound = 1 / kind.scenario(1).costs.job
        print(f"\n{kind.name}; one server makes less than {bound:.0f} images/s")
        outcomes = dict(until_busy(kind))
        for count, outcome in outcomes.items():
            share = outcome.images_per_s / (kind.images_per_s * count)
            print(
                f"{count:6} workers {outcome.images_per_s:8.0f} images/s, {share:4.0%} of what "
                f"they could, Redis {outcome.redis_load:4.0%}"
            )
        counts = list(outcomes)
        made = [outcome.images_per_s for outcome in outcomes.values()]
        throughput += [
            Curve(kind.name, counts, made),
            Curve("", FLEETS, [kind.images_per_s * count for count in FLEETS], is_faint=True),
        ]
        load.append(Curve(kind.name, counts, [o.redis_load for o in outcomes.values()]))
        tell_queues(kind, outcomes)
    draw(
        IMAGES / "scaling-throughput.png", "One queue, full load",
        [("images a second", throughput), ("Redis, share of its time", load)], is_log=(True, False),
    )  # fmt: skip


def until_busy(kind: Kind) -> Iterator[tuple[int, Outcome]]:
    """Yield fleets and what they make, up to the first that leaves its server no time.

    Beyond, calls run into their time limits, and what a simulation says means nothing.
    """
    for count in FLEETS:
        scenario = replace(kind.scenario(count), warm_up_s=5.0, measured_s=20.0)
        outcome = Simulation(scenario).run()
        yield count, outcome
        if outcome.redis_load > 0.98:
            return


def tell_queues(kind: Kind, outcomes: Mapping[int, Outcome]) -> None:
    """Say how many queues 10,000 workers need, each on a server that is busy half of its time."""
    count = max(count for count, outcome in outcomes.items() if outcome.redis_load < 0.9)
    load_of_one = outcomes[count].redis_load / count
    fed = int(0.5 / load_of_one)
    print(f"a server at 50 % feeds {fed} workers; 10,000 need {-(-10000 // fed)} queues")


def shares() -> None:
    """Say what a server's time goes to, as workers are and as they could be."""
    kind, count = KINDS[2], 100
    as_is = kind.scenario(count)
    as_is = replace(as_is, rate=0.7 * as_is.capacity, measured_s=10.0, warm_up_s=15.0)
    for name, scenario in {
        "as it is": as_is,
        "progress once a second": replace(as_is, progress_s=1.0),
        "claims only when there is news": replace(as_is, asks_each_turn=False),
    }.items():
        outcome = Simulation(scenario).run()
        print(f"\n{count} workers at 70 %, {name}: Redis {outcome.redis_load:.0%}")
        for verb, share in sorted(outcome.shares.items(), key=lambda item: -item[1]):
            print(f"  {verb:14} {share:6.2%}")


def idle() -> None:
    """Draw what Redis does while nobody asks for anything."""
    print("\nnobody asks for anything")
    loads = []
    for count in FLEETS:
        scenario = replace(KINDS[1].scenario(count), rate=1e-9, warm_up_s=2.0, measured_s=5.0)
        outcome = Simulation(scenario).run()
        loads.append(outcome.redis_load)
        print(f"{count:6} workers: Redis {outcome.redis_load:5.1%}")
    curve = Curve("idle workers", list(FLEETS), loads)
    draw(
        IMAGES / "scaling-idle.png", "One queue, no work",
        [("Redis, share of its time", [curve])], is_log=(False,),
    )  # fmt: skip


def waiting() -> None:
    """Draw how long jobs wait for a slot when requests come at random."""
    kind, mean, late = KINDS[2], [], []
    for count in (1, 10, 100):
        outcomes = [at_load(kind, count, load) for load in LOADS]
        name = f"{count} workers"
        mean.append(Curve(name, LOADS, [1000 * o.mean_wait_s for o in outcomes]))
        late.append(Curve(name, LOADS, [1000 * o.wait_s(0.99) for o in outcomes]))
        print(f"\n{name}: load, mean wait, p99, Redis")
        for load, outcome in zip(LOADS, outcomes, strict=True):
            print(
                f"{load:5.0%} {1000 * outcome.mean_wait_s:7.1f} ms "
                f"{1000 * outcome.wait_s(0.99):7.0f} ms {outcome.redis_load:5.1%}"
            )
    draw(
        IMAGES / "scaling-waiting.png", f"Random arrivals, {kind.name}",
        [("mean wait, ms", mean), ("99 % wait less, ms", late)],
        is_log=(True, True), x_label="load", is_x_log=False,
    )  # fmt: skip


def at_load(kind: Kind, num_workers: int, load: float) -> Outcome:
    """Simulate a fleet under random arrivals."""
    scenario = kind.scenario(num_workers)
    rate = load * scenario.capacity
    measured_s = max(NUM_JOBS / rate, 3 * kind.image_s)
    return Simulation(
        replace(scenario, rate=rate, warm_up_s=3 * kind.image_s, measured_s=measured_s)
    ).run()


if __name__ == "__main__":
    main()
