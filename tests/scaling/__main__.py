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
from tests.scaling.measure import RESULT_BYTES, Measurement
from tests.scaling.plots import Curve, draw
from tests.scaling.simulation import Outcome, Scenario, Simulation
from tests.service.redis_server import RedisServer
from tests.written_tables import table_of, write_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"
IMAGES = DOCUMENT.parent / "images"
FLEETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
NUM_ROUNDS = 3  # what disturbs a measurement makes it longer
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
    """Simulate everything, write the tables, draw the pictures."""
    parser = argparse.ArgumentParser(prog="python -m tests.scaling")
    parser.add_argument("--measure", action="store_true", help="measure the verbs anew")
    if parser.parse_args().measure:
        measure()
    idle()
    tables = {
        "verbs": verbs_table, "throughput": throughput, "waiting": waiting, "shares": shares
    }  # fmt: skip
    for name, table in tables.items():
        rows = table()
        print(f"\n{rows}")
        write_table(DOCUMENT, name, rows)


def verbs_table() -> str:
    """Return what each verb costs, by the size of its results."""
    costs = {result: VerbCosts.load(result).to_json() for result in RESULT_BYTES}
    names = next(iter(costs.values()))
    return table_of(
        ["µs of the server", *(f"{size / 1000:g} kB" for size in RESULT_BYTES.values())],
        [[name, *(f"{1e6 * found[name]:.3g}" for found in costs.values())] for name in names],
    )


def measure() -> None:
    """Measure the verbs on a server of our own, several times, and keep the least of each."""
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        rounds = [asyncio.run(Measurement(server.url).run()) for _ in range(NUM_ROUNDS)]
    measured = rounds[0]
    for result, costs in measured["seconds"].items():
        for verb in costs:
            costs[verb] = min(found["seconds"][result][verb] for found in rounds)
    MEASURED.write_text(json.dumps(measured, indent=2) + "\n", "utf-8")


def throughput() -> str:
    """Draw what fleets make when there is always more to do, until their server is busy."""
    made, load, rows = [], [], []
    for kind in KINDS:
        outcomes = dict(until_busy(kind))
        counts = list(outcomes)
        made += [
            Curve(kind.name, counts, [o.images_per_s for o in outcomes.values()]),
            Curve("", FLEETS, [kind.images_per_s * count for count in FLEETS], is_faint=True),
        ]
        load.append(Curve(kind.name, counts, [o.redis_load for o in outcomes.values()]))
        rows.append(row_of(kind, outcomes))
    draw(
        IMAGES / "scaling-throughput.png", "One queue, full load",
        [("images a second", made), ("Redis, share of its time", load)], is_log=(True, False),
    )  # fmt: skip
    heading = "a worker makes", "one server, at most", "half of its time feeds"
    return table_of([*heading, "all of it", "10,000 workers need"], rows)


def row_of(kind: Kind, outcomes: Mapping[int, Outcome]) -> list[str]:
    """Say how far one server goes, and how many 10,000 workers need at half of their time."""
    most = max(outcome.images_per_s for outcome in outcomes.values())
    count = max(count for count, outcome in outcomes.items() if outcome.redis_load < 0.9)
    fed = int(0.5 * count / outcomes[count].redis_load)
    return [
        kind.name,
        f"{most:,.0f} images/s",
        f"{fed} workers",
        f"{most / kind.images_per_s:.0f} workers",
        f"{-(-10000 // fed):,} queues",
    ]


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


def shares() -> str:
    """Say what a server's time goes to, as workers are and as they could be."""
    kind, count = KINDS[2], 100
    as_is = kind.scenario(count)
    as_is = replace(as_is, rate=0.7 * as_is.capacity, measured_s=10.0, warm_up_s=15.0)
    outcomes = {
        "as it is": Simulation(as_is).run(),
        "progress once a second": Simulation(replace(as_is, progress_s=1.0)).run(),
        "claims at every turn": Simulation(replace(as_is, asks_each_turn=True)).run(),
    }
    verbs = sorted(outcomes["as it is"].shares.items(), key=lambda item: -item[1])
    rows = [[verb, *(f"{o.shares[verb]:.1%}" for o in outcomes.values())] for verb, _ in verbs]
    rows.append(["**all**", *(f"**{o.redis_load:.0%}**" for o in outcomes.values())])
    return table_of(["share of the server's time", *outcomes], rows)


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


def waiting() -> str:
    """Draw how long jobs wait for a slot when requests come at random."""
    kind, mean, late, rows = KINDS[2], [], [], []
    for count in (1, 10, 100):
        outcomes = [at_load(kind, count, load) for load in LOADS]
        name = f"{count} worker" if count == 1 else f"{count} workers"
        mean.append(Curve(name, LOADS, [1000 * o.mean_wait_s for o in outcomes]))
        late.append(Curve(name, LOADS, [1000 * o.wait_s(0.99) for o in outcomes]))
        rows += [
            [
                name, f"{load:.0%}", f"{1000 * o.mean_wait_s:.0f} ms",
                f"{1000 * o.wait_s(0.99):.0f} ms", f"{o.redis_load:.0%}",
            ]
            for load, o in zip(LOADS, outcomes, strict=True)
        ]  # fmt: skip
    draw(
        IMAGES / "scaling-waiting.png", f"Random arrivals, {kind.name}",
        [("mean wait, ms", mean), ("99 % wait less, ms", late)],
        is_log=(True, True), x_label="load", is_x_log=False,
    )  # fmt: skip
    return table_of(["fleet", "load", "mean wait", "99 % wait less than", "Redis"], rows)


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
