"""The simulation agrees with what is known in closed form, and with its own parts."""

from dataclasses import replace
from math import factorial

import pytest

from tests.scaling.costs import VerbCosts
from tests.scaling.measure import RESULT_BYTES
from tests.scaling.simulation import Outcome, Scenario, Simulation

IDEAL = Scenario(
    num_workers=1, num_slots=1, image_s=0.01, costs=VerbCosts.free(), network_s=0.0,
    progress_s=1e9,
)  # fmt: skip


def run(scenario: Scenario) -> Outcome:
    """Simulate a scenario."""
    return Simulation(scenario).run()


def erlang_wait_s(rate: float, service_s: float, servers: int) -> float:
    """Return the mean wait of an M/M/c queue."""
    offered = rate * service_s
    last = offered**servers / factorial(servers) / (1 - offered / servers)
    waits = last / (last + sum(offered**k / factorial(k) for k in range(servers)))
    return waits / (servers / service_s - rate)


@pytest.mark.parametrize(("workers", "load"), [(1, 0.6), (2, 0.7), (6, 0.7)])
def test_waits_are_those_of_erlang(workers: int, load: float) -> None:
    """Random arrivals, random lengths, free calls: the mean wait of M/M/c, within a tenth."""
    rate = 100 * load * workers
    scenario = replace(
        IDEAL,
        num_workers=workers,
        rate=rate,
        lengths="exponential",
        warm_up_s=10,
        measured_s=40000 / rate,
    )  # fmt: skip
    outcome = run(scenario)
    assert pytest.approx(rate, rel=0.02) == outcome.images_per_s
    assert pytest.approx(erlang_wait_s(rate, 0.01, workers), rel=0.1) == outcome.mean_wait_s


def test_waits_of_equal_images_are_half_of_it() -> None:
    """With images of one length a single slot is M/D/1: Pollaczek and Khinchine's formula."""
    load = 0.7
    outcome = run(replace(IDEAL, rate=100 * load, warm_up_s=10, measured_s=500))
    assert pytest.approx(0.01 * load / (2 * (1 - load)), rel=0.1) == outcome.mean_wait_s


def test_slots_are_shared_like_workers() -> None:
    """Six workers of one slot and one worker of six make jobs wait for as long."""
    many = replace(IDEAL, num_workers=6, rate=480, measured_s=50, warm_up_s=10)
    one = replace(many, num_workers=1, num_slots=6)
    assert pytest.approx(run(many).mean_wait_s, rel=0.1) == run(one).mean_wait_s


def test_a_free_server_leaves_workers_all_of_their_time() -> None:
    """Under full load and without costs every slot is always full."""
    outcome = run(replace(IDEAL, num_workers=5, num_slots=8, measured_s=5))
    assert pytest.approx(5 * 8 / 0.01, rel=0.01) == outcome.images_per_s
    assert 0.0 == outcome.redis_load


def test_the_server_is_the_bound_of_many_workers() -> None:
    """With more workers than it can feed, a server makes what its time for a job allows."""
    costs = replace(VerbCosts.free(), admit=1e-3, stage=2e-3, read=1e-3)
    outcome = run(
        replace(IDEAL, num_workers=4, num_slots=100, image_s=1.0, costs=costs, measured_s=20)
    )
    assert pytest.approx(1.0, abs=0.01) == outcome.redis_load
    assert pytest.approx(1 / costs.job, rel=0.05) == outcome.images_per_s
    assert pytest.approx(outcome.redis_load, abs=0.02) == sum(outcome.shares.values())


def test_a_ring_kept_by_a_full_worker_makes_jobs_wait() -> None:
    """Where full workers hear the bell and keep it, idle ones learn of jobs half a second late."""
    scenario = replace(IDEAL, num_workers=8, image_s=1.0, rate=4.0, measured_s=600)
    passed_on, kept = run(scenario), run(replace(scenario, hears_when_full=True))
    assert passed_on.mean_wait_s < kept.mean_wait_s
    assert passed_on.wait_s(0.9) < 0.01


def test_asking_at_every_turn_costs_the_server_more() -> None:
    """Workers that ask only when there is news leave it time, and their jobs wait no longer."""
    scenario = Scenario(
        num_workers=20, num_slots=8, image_s=2.0, costs=VerbCosts.load("digits"), rate=40.0,
        warm_up_s=5, measured_s=40,
    )  # fmt: skip
    told, asking = run(scenario), run(replace(scenario, asks_each_turn=True))
    assert 2 * told.shares["empty claims"] < asking.shares["empty claims"]
    assert told.redis_load < asking.redis_load
    assert told.mean_wait_s < 0.005


def test_runs_are_repeatable() -> None:
    """The same seed gives the same outcome; another one another."""
    scenario = Scenario(
        num_workers=3, num_slots=4, image_s=0.5, costs=VerbCosts.load("digits"), rate=15.0,
        warm_up_s=1, measured_s=5,
    )  # fmt: skip
    assert run(scenario) == run(scenario)
    assert run(scenario) != run(replace(scenario, seed=1))


@pytest.mark.parametrize("result", sorted(RESULT_BYTES))
def test_every_verb_was_measured(result: str) -> None:
    """The committed costs name every verb, each between a tenth of a µs and ten ms."""
    costs = VerbCosts.load(result).to_json()
    assert all(1e-7 < cost < 1e-2 for cost in costs.values()), costs
