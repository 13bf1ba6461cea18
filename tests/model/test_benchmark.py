"""Facts of the engine's benchmark, on the tiny model."""

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.benchmark import (
    BenchmarkPlan,
    Report,
    _stages_alone,
    measure_peaks,
    run_benchmark,
)
from model.engine import Engine
from model.precision import PRECISIONS
from tests.model.tiny import request, tiny_config, tiny_generator, tiny_tokenizer

SAMPLING = request(unmask_schedule=(4, 4, 4, 4)).sampling


class Encoder:
    """Counts images, and remembers the distinct ones."""

    def __init__(self) -> None:
        self.num_images, self.distinct = 0, set[bytes]()

    def __call__(self, pixels: NDArray[np.uint8]) -> bytes:
        self.num_images += 1
        self.distinct.add(pixels.tobytes())
        return b"a file"


def run(encode: Encoder, lines: list[str], **changes: object) -> Report:
    """Benchmark the tiny model."""
    values = {
        "batch": 2,
        "images": 5,
        "runs": 2,
        "precision": PRECISIONS["float32"],
        "against_twin": True,
        "batch_invariant": False,
        **changes,
    }
    return run_benchmark(
        tiny_generator(tiny_config(2), torch.float32),
        tiny_tokenizer(dtype=torch.float32),
        SAMPLING,
        BenchmarkPlan(**values),  # type: ignore[arg-type]
        encode,
        lines.append,
    )


def test_a_report_says_how_fast_and_how_far_from_the_floor() -> None:
    """Two slots, five images, two runs, the twin in turn: every figure that is promised."""
    encode, lines = Encoder(), list[str]()
    report = run(encode, lines)
    assert report == json.loads(json.dumps(report))
    promised = "images_per_s ms_per_step peak_memory_bytes roofline_share ratio_to_twin"
    numbers = {name: value for name, value in report.items() if not isinstance(value, str)}
    assert set(promised.split()) <= set(numbers)
    assert all(value > 0 for value in numbers.values())
    assert ("float32", "cpu", torch.__version__) == (
        report["dtype"],
        report["device"],
        report["torch"],
    )
    shares = [numbers[f"share_{stage}"] for stage in ("trunk", "head", "decoder", "encode")]
    assert 0 < sum(shares) <= 1
    assert numbers["roofline_share"] < 1
    # Two to begin with, then five for the engine and for the twin, twice; the twin's are the same.
    assert (2 + 20, 5) == (encode.num_images, len(encode.distinct))
    assert 2 == sum(line.startswith("run ") for line in lines)
    assert 2 == sum("slow twin" in line for line in lines)


def test_without_a_twin_there_is_no_ratio() -> None:
    """One run of fewer images than slots is a run too; so is one of a batch-invariant engine."""
    encode = Encoder()
    report = run(encode, [], images=2, batch=3, runs=1, against_twin=False, batch_invariant=True)
    assert "ratio_to_twin" not in report
    assert 2 + 2 == encode.num_images


def test_stages_can_be_timed_one_by_one() -> None:
    """Head, trunk and decoder by themselves, as on a GPU, and the engine is as good as new."""
    engine = Engine(
        tiny_generator(tiny_config(2), torch.float32),
        tiny_tokenizer(dtype=torch.float32),
        num_slots=2,
    )
    image = request(unmask_schedule=(4, 4, 4, 4))
    plan = BenchmarkPlan(
        batch=2,
        images=4,
        runs=1,
        precision=PRECISIONS["float32"],
        against_twin=False,
        batch_invariant=False,
    )
    images = []
    for _ in range(2):
        slot = engine.admit(image)
        while engine.progress(slot) < 1:
            engine.step()
        images.append(engine.decode([slot]))
        seconds = _stages_alone(engine, plan, SAMPLING, 8)
        assert {"head", "trunk", "decoder"} == {name for name, value in seconds.items() if value}
    assert np.array_equal(images[0], images[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peaks_are_those_of_a_machine(dtype: torch.dtype) -> None:
    """At least a billion operations and bytes a second, and fewer than any processor's."""
    peaks = measure_peaks(torch.device("cpu"), dtype)
    assert 1e9 < peaks.flops_per_s < 1e15
    assert 1e9 < peaks.bytes_per_s < 1e13
