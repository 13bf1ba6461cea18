"""Facts of running steps by their plans, with graphs that only pretend to be captured."""

import pytest
import torch

from model.cuda_graphs import MAX_GRAPHS, StepPlan, StepRunner
from model.engine import Engine
from model.generate import generate
from model.precision import Precision
from tests.model.pretend_graphs import PretendGraphs
from tests.model.tiny import request, tiny_config, tiny_generator, tiny_tokenizer


class Step:
    """A step that counts its runs."""

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []

    def __call__(self, plan: StepPlan) -> None:
        self.plans.append(plan)


def plan(stop: int, rounds: int = 4) -> StepPlan:
    """Return the plan of a guided step of the first `stop` slots."""
    return StepPlan(0, stop, 2, 2, rounds)


def test_on_the_cpu_steps_simply_run() -> None:
    """Every call runs the step once; warm-up runs the largest first."""
    step = Step()
    runner = StepRunner(step, torch.device("cpu"))
    assert not runner.has_graphs
    runner(plan(1))
    assert [plan(1)] == step.plans
    runner.warm_up([plan(1), plan(4), plan(2)])
    assert [4, 2, 1] == [done.stop for done in step.plans[1:]]


def test_the_second_step_of_a_plan_is_captured_and_later_ones_replayed() -> None:
    """The first runs outside of any graph, and every call runs the step exactly once."""
    step = Step()
    runner = PretendGraphs(step)
    runner(plan(2))
    assert [] == runner.log
    runner(plan(2))
    runner(plan(2))
    assert ["capture", "replay", "replay"] == [action for action, _ in runner.log]
    assert [plan(2)] * 3 == step.plans


def test_each_plan_has_its_own_graph() -> None:
    """Plans that differ in slots, branches or rounds are different graphs."""
    runner = PretendGraphs(Step())
    plans = [plan(2), plan(4), plan(2, rounds=8), plan(2)._replace(trunk_branches=1)]
    runner.warm_up(plans)
    assert set(plans) == {done for action, done in runner.log if action == "capture"}
    assert plan(4) == runner.log[0][1]


def test_forgotten_graphs_are_captured_anew_into_another_pool() -> None:
    """A pool ends with its last graph, so forgetting drops it too."""
    runner = PretendGraphs(Step())
    runner.warm_up([plan(2)])
    assert "alive" == runner._pool
    runner.forget()
    assert runner._pool is None
    runner.log.clear()
    for _ in range(2):
        runner(plan(2))
    assert ["capture", "replay"] == [action for action, _ in runner.log]


def test_graphs_do_not_pile_up() -> None:
    """Beyond a number of plans the least recently used is dropped."""
    runner = PretendGraphs(Step())
    for stop in range(1, 2 * MAX_GRAPHS):
        runner.warm_up([plan(stop)])
        runner(plan(1))
    assert MAX_GRAPHS == len(runner._graphs)
    runner.log.clear()
    runner(plan(1))
    assert [("replay", plan(1))] == runner.log


def test_a_step_whose_capture_fails_has_not_run() -> None:
    """Out of memory while capturing leaves the step to be run again, whole."""
    step = Step()
    runner = PretendGraphs(step, fail_capture=True)
    runner(plan(2))
    with pytest.raises(torch.OutOfMemoryError):
        runner(plan(2))
    assert [plan(2)] == step.plans


@pytest.mark.parametrize("batch_invariant", [True, False])
def test_an_engine_with_graphs_draws_the_same_images(batch_invariant: bool) -> None:
    """Few plans for many kinds of traffic: rounds go up in powers of two, branches together, and
    the images are the slow generator's."""
    engine = Engine(
        tiny_generator(tiny_config(2)),
        tiny_tokenizer(),
        num_slots=4,
        precision=Precision(torch.float64),
        batch_invariant=batch_invariant,
    )
    runner = PretendGraphs(engine._token_step)
    engine._run_step = runner
    schedules = [(16,), (8, 8), (5, 5, 6), (3, 3, 3, 3, 4), (1,) * 16, (1,) * 8 + (8,), (4,) * 4]
    images = [
        request(class_id=n % 5, seed=n, unmask_schedule=schedule, guidance_scale=1 + n % 3)
        for n, schedule in enumerate(schedules)
    ]
    expected = generate(tiny_generator(tiny_config(2)), tiny_tokenizer(), images)
    waiting, slots, done = list(range(len(images))), dict[int, int](), 0
    while waiting or slots:
        if waiting and engine.free_slots:
            number = waiting.pop(0)
            slots[engine.admit(images[number])] = number
        for slot in engine.step():
            assert (engine.decode([slot])[0] == expected[slots.pop(slot)]).all()
            done += 1
    assert len(images) == done
    plans = {done for _, done in runner.log}
    assert {4, 8, 16} >= {done.num_rounds for done in plans}
    assert all(done.head_branches == done.trunk_branches for done in plans)
    assert {4} == {done.stop for done in plans} or not batch_invariant


def test_warming_up_captures_what_default_traffic_needs() -> None:
    """After warm-up, images with up to four rounds are drawn by replays alone."""
    engine = Engine(
        tiny_generator(),
        tiny_tokenizer(),
        num_slots=5,
        precision=Precision(torch.float64),
        batch_invariant=False,
    )
    runner = PretendGraphs(engine._token_step)
    engine._run_step = runner
    engine.warm_up()
    runner.log.clear()
    for count in range(1, 6):
        slots = [
            engine.admit(request(seed=n, guidance_scale=1 + n, unmask_schedule=(1,) * 4))
            for n in range(count)
        ]
        while engine.progress(slots[-1]) < 1:
            engine.step()
        engine.decode(slots)
    assert {"replay"} == {action for action, _ in runner.log}
