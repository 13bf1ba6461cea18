"""`python -m tests.full_stack`: what a whole installation makes, against the sum of its workers.

With `--real` the workers run the digits and share this machine's processors with everything else;
otherwise they sleep through their steps, so that what is measured is the service around them.
"""

import argparse
import asyncio
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.full_stack.stack import Stack, bench
from tests.scaling.costs import VerbCosts
from tests.scaling.simulation import Scenario, Simulation
from tests.service.fakes import NUM_STEPS

FAKE_SLOTS, FAKE_STEP_S = 4, 0.05
MEAN_STEP = "sum(increase(bar_step_seconds_sum[1m])) / sum(increase(bar_step_seconds_count[1m]))"


async def measure(num_workers: int, *, is_real: bool, num_requests: int) -> None:
    """Load an installation with more than it can do, and print what it makes."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as cleanup:
        stack = Stack(
            Path(folder), cleanup, num_workers=num_workers,
            fake_step_s=None if is_real else FAKE_STEP_S,
        )  # fmt: skip
        await stack.start()
        slots = 16 if is_real else FAKE_SLOTS
        clients = str(2 * num_workers * slots)
        await bench(stack.url, "--requests", clients, "--concurrency", clients)
        computed_s, started = stack.redis_computed_s(), time.monotonic()
        report = await bench(stack.url, "--requests", str(num_requests), "--concurrency", clients)
        load = (stack.redis_computed_s() - computed_s) / (time.monotonic() - started)
        (step_s,) = (await stack.query(MEAN_STEP)).values()
    image_s = (16 if is_real else NUM_STEPS) * step_s
    simulated = Simulation(
        Scenario(
            num_workers=num_workers, num_slots=slots, image_s=image_s,
            costs=VerbCosts.load("digits"),
        )
    ).run()  # fmt: skip
    sum_of_workers = num_workers * slots / image_s
    print(
        f"{num_workers} workers: {report['images_per_s']:.1f} images/s, {report['failed']} failed, "
        f"p99 {report['p99_ms']:.0f} ms; slots and steps ({1000 * step_s:.1f} ms) allow "
        f"{sum_of_workers:.1f}: {report['images_per_s'] / sum_of_workers:.1%}; Redis {load:.1%}, "
        f"simulated {simulated.redis_load:.1%}",
        flush=True,
    )


def main() -> None:
    """Measure one fleet after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.full_stack")
    parser.add_argument("--real", action="store_true", help="digits, not workers that sleep")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    for count in options.workers:
        asyncio.run(measure(count, is_real=options.real, num_requests=options.requests))


if __name__ == "__main__":
    main()
