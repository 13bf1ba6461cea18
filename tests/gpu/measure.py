"""Measures everything that needs a GPU, in under ten minutes: python -m tests.gpu.measure

The tests that need one run first, then what matters most: every published model in bfloat16, alone
and in batches, then what each precision costs, then all again in fp8. One line of JSON on standard
output for each measurement, as soon as it is made; progress on standard error; a table in Markdown
in a file, written anew each time. Weights are random: they cost the same arithmetic. What the time
left does not allow, or the memory, is skipped with a line that says so, and a hard stop ends the
process should anything hang. Needs what model/ needs, and for the tests what those need.

With --dry-run the same script runs on the processor in seconds, on the smallest preset.
"""

import argparse
import faulthandler
import gc
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.benchmark import BenchmarkPlan, Peaks, Report, measure_peaks, run_benchmark
from model.config import PRESETS, ImageRequest, Preset
from model.engine import Engine
from model.fast_decoder import FastDecoder
from model.generator import Generator
from model.precision import PRECISIONS
from model.quality import measure_quality
from model.tokenizer import Tokenizer

# Encoding is the processor's work, and measured elsewhere.
NO_FILE = b""
GRACE_S = 45.0  # beyond the time allowed, before the hard stop
ROOT = Path(__file__).parents[2]
# Images per second that a preset reaches at least, for a first guess of how long it takes.
SLOWEST_GUESS = {"bar-b-patch4": 200.0, "bar-b-patch2": 80.0, "bar-b": 20.0, "bar-l": 10.0}
COLUMNS = (
    ("preset", "preset"),
    ("dtype", "dtype"),
    ("batch", "batch"),
    ("images/s", "images_per_s"),
    ("ms/step", "ms_per_step"),
    ("of the aim", "aim_share"),
    ("of the roofline", "roofline_share"),
    ("head", "share_head"),
    ("trunk", "share_trunk"),
    ("decoder", "share_decoder"),
    ("peak GB", "peak_gb"),
    ("ready s", "ready_s"),
)


# What an H200 is meant to reach: images per second in bfloat16, and milliseconds for one alone.
AIMED_IMAGES_PER_S = {
    "bar-b-patch4": 2000.0,
    "bar-b-patch2": 950.0,
    "bar-b": 220.0,
    "bar-l": 115.0,
    "bar-l-res512": 12.0,
}
AIMED_MS = {"bar-b-patch4": 8.0, "bar-b-patch2": 30.0, "bar-b": 120.0, "bar-l": 200.0}
# Where a run takes this long one is enough.
LONG_RUN_S = 8.0


@dataclass(frozen=True)
class Scope:
    """What is measured, and in how long."""

    device: torch.device
    presets: Sequence[str]
    precisions: Sequence[str]
    batches: Sequence[int]
    decoder_batches: Sequence[int]
    quality_presets: Sequence[str]
    runs: int
    seconds: float
    tests_s: float  # of these, for the tests at most


ON_GPU = Scope(
    device=torch.device("cuda"),
    presets=["bar-b-patch4", "bar-b-patch2", "bar-b", "bar-l", "bar-l-res512"],
    precisions=["bfloat16", "fp8"],
    batches=[256, 64, 1024],
    decoder_batches=[8, 16, 32, 64],
    quality_presets=["bar-b-patch4", "bar-b-patch2"],
    runs=3,
    seconds=9 * 60,
    tests_s=150,
)
DRY_RUN = Scope(
    device=torch.device("cpu"),
    presets=["digits"],
    precisions=["float32"],
    batches=[1, 2],
    decoder_batches=[1, 2],
    quality_presets=["digits"],
    runs=1,
    seconds=150,
    tests_s=90,
)


class Record:
    """Where measurements go."""

    def __init__(self, scope: Scope, path: Path) -> None:
        self._path, self._started, self._seconds = path, time.perf_counter(), scope.seconds
        self._throughput: list[Report] = []
        self._others: list[str] = []
        self._heading = f"{_device_name(scope.device)}, torch {torch.__version__}"

    @property
    def left_s(self) -> float:
        return self._seconds - (time.perf_counter() - self._started)

    def add(self, measurement: str, values: Report) -> None:
        """Print one measurement, and bring the table up to date."""
        line = {"measurement": measurement, **values}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        if measurement == "throughput":
            self._throughput.append(values)
        else:
            shown = ", ".join(f"{name} {_shown(value)}" for name, value in values.items())
            self._others.append(f"* {measurement}: {shown}")
        self._path.write_text(self._text(), encoding="utf-8")

    def _text(self) -> str:
        titles = [title for title, _ in COLUMNS]
        rows = [titles, ["---"] * len(titles)]
        rows += [[_shown(values.get(n, "")) for _, n in COLUMNS] for values in self._throughput]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return "\n\n".join([self._heading, table, "\n".join(self._others)]) + "\n"

    @contextmanager
    def attempt(self, measurement: str, about: Report, needed_s: float) -> Iterator[bool]:
        """Yield whether there is time for a measurement; note it if not, or if memory ran out."""
        _free()  # also of what a failed attempt before held until it was left
        has_time = needed_s <= self.left_s
        reason = f"needs about {needed_s:.0f} s, {max(0, self.left_s):.0f} s are left"
        try:
            yield has_time
        except torch.OutOfMemoryError:
            has_time, reason = False, "does not fit into the memory"
        if not has_time:
            self.add("skipped", {"what": measurement, **about, "reason": reason})


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 1 if there is no GPU to measure on, or a test failed."""
    options = _parser().parse_args(argv)
    scope = DRY_RUN if options.dry_run else ON_GPU
    if scope.device.type == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("there is no CUDA device here; --dry-run tries the script without one\n")
        return 1
    faulthandler.dump_traceback_later(
        scope.seconds + GRACE_S, exit=True, file=sys.__stderr__ or sys.stderr
    )
    try:
        record = Record(scope, options.output)
        have_passed = options.skip_tests or _run_tests(scope, record)
        _measure(scope, record)
    finally:
        faulthandler.cancel_dump_traceback_later()
    return 0 if have_passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.measure", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="a small model on the processor")
    parser.add_argument("--skip-tests", action="store_true", help="measure at once")
    parser.add_argument(
        "--output", type=Path, default=Path("measurements.md"), metavar="FILE", help="the table"
    )
    return parser


def _run_tests(scope: Scope, record: Record) -> bool:
    """Run the tests that need a GPU, in a process of their own; return whether none failed.

    What is measured of an engine that draws wrong images is worth nothing, and is told beside it.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests" / "gpu")]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=scope.tests_s, check=False,
        )  # fmt: skip
        output, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output, status = (error.stdout or b"").decode() + f"\nno end after {scope.tests_s:g} s", 2
    values: Report = {"seconds": time.perf_counter() - started, "status": status}
    last = output.strip().rpartition("\n")[2]
    values |= {name: int(count) for count, name in re.findall(r"(\d+) (\w+)", last)}
    if status:
        _say(output)
        values["said"] = last
    record.add("tests", values)
    return status == 0


def _measure(scope: Scope, record: Record) -> None:
    peaks = _measure_device(scope, record)
    for precision in scope.precisions:
        for name in scope.presets:
            _measure_model(scope, record, name, precision, peaks)
        if precision == scope.precisions[0]:
            for name in scope.quality_presets:
                _measure_quality(scope, record, name)


def _measure_model(scope: Scope, record: Record, name: str, precision: str, peaks: Peaks) -> None:
    _say(f"{name}, {precision}: drawing weights")
    generator, tokenizer = build(PRESETS[name], scope.device)
    _measure_latency(scope, record, name, generator, tokenizer, precision)
    _measure_throughput(scope, record, name, generator, tokenizer, precision, peaks)
    if name == scope.presets[0]:
        _measure_decoder(scope, record, tokenizer, precision)


def build(preset: Preset, device: torch.device) -> tuple[Generator, Tokenizer]:
    """Draw random weights on the device itself, where that takes no time."""
    torch.manual_seed(0)
    with torch.device(device):
        generator = Generator(preset.generator)
        tokenizer = Tokenizer(preset.tokenizer, with_encoder=False)
    return generator.eval().to(device), tokenizer.eval().to(device)


def _measure_device(scope: Scope, record: Record) -> Peaks:
    """Measure how long the device takes to begin with, and its two ceilings in bfloat16."""
    started = time.perf_counter()
    torch.zeros(1, device=scope.device)
    _wait(scope.device)
    first_tensor_s = time.perf_counter() - started
    peaks = measure_peaks(scope.device, PRECISIONS[scope.precisions[0]].dtype)
    _free()
    values: Report = {"device": _device_name(scope.device), "first_tensor_s": first_tensor_s}
    values |= {"peak_tflops": peaks.flops_per_s / 1e12, "peak_gb_per_s": peaks.bytes_per_s / 1e9}
    record.add("device", values)
    return peaks


def _plan(precision: str, batch: int, waves: int, runs: int) -> BenchmarkPlan:
    return BenchmarkPlan(
        batch=batch,
        images=batch * waves,
        runs=runs,
        precision=PRECISIONS[precision],
        against_twin=False,
        batch_invariant=False,
    )


def _measure_throughput(
    scope: Scope,
    record: Record,
    name: str,
    generator: Generator,
    tokenizer: Tokenizer,
    precision: str,
    peaks: Peaks,
) -> None:
    """Measure images per second by batch; the first batch says how long the others may take."""
    rate = SLOWEST_GUESS.get(name, 4.0)
    for batch in scope.batches:
        # Several batches one after the other, if quick: one is decoded beside the next.
        waves = max(1, min(4, int(10 * rate / batch)))
        runs = 1 if waves * batch / rate > LONG_RUN_S else scope.runs
        about: Report = {"preset": name, "dtype": precision, "batch": batch}
        needed_s = 10 + (1 + runs * waves) * batch / rate
        with record.attempt("throughput", about, needed_s) as has_time:
            if has_time:
                plan, sampling = _plan(precision, batch, waves, runs), PRESETS[name].sampling
                report = run_benchmark(generator, tokenizer, sampling, plan, _no_file, _say, peaks)
                rate = float(report["images_per_s"])
                report["peak_gb"] = float(report["peak_memory_bytes"]) / 1e9
                if name in AIMED_IMAGES_PER_S:
                    report["aim_share"] = rate / AIMED_IMAGES_PER_S[name]
                record.add("throughput", {**about, **report})


def _measure_latency(
    scope: Scope,
    record: Record,
    name: str,
    generator: Generator,
    tokenizer: Tokenizer,
    precision: str,
) -> None:
    """Measure how long one image takes by itself, from its admission to its pixels."""
    about: Report = {"preset": name, "dtype": precision}
    num_tokens = PRESETS[name].generator.num_tokens
    with record.attempt("latency", about, 10 + 3 * num_tokens * 0.02) as has_time:
        if not has_time:
            return
        engine = Engine(generator, tokenizer, num_slots=1, precision=PRECISIONS[precision])
        engine.warm_up()
        seconds = []
        for seed in range(1 + scope.runs):  # the first fills the prefix cache
            started = time.perf_counter()
            request = ImageRequest(class_id=0, seed=seed, sampling=PRESETS[name].sampling)
            slot = engine.admit(request)
            while engine.progress(slot) < 1:
                engine.step()
            engine.decode([slot])
            seconds.append(time.perf_counter() - started)
        values: Report = {"ms": 1000 * statistics.median(seconds[1:])}
        if name in AIMED_MS:
            values["aimed_ms"] = AIMED_MS[name]
        record.add("latency", {**about, **values})


def _measure_decoder(scope: Scope, record: Record, tokenizer: Tokenizer, precision: str) -> None:
    """Measure how many images a second the decoder makes by itself, by its batch."""
    config, kind = tokenizer.config, PRECISIONS[precision]
    for batch in scope.decoder_batches:
        about: Report = {"dtype": precision, "batch": batch}
        with record.attempt("decoder", about, 10) as has_time:
            if not has_time:
                continue
            decoder = FastDecoder(tokenizer, kind.dtype, batch, kind.linear)
            codes = torch.ones(
                batch, config.grid_size**2, config.bits_per_latent, device=scope.device
            )
            seconds = _median_s(lambda d=decoder, c=codes: d.start(c).images())  # type: ignore[misc]
            record.add("decoder", {**about, "images_per_s": batch / seconds})


def _measure_quality(scope: Scope, record: Record, name: str) -> None:
    """Measure what each precision costs, on random weights: on trained ones it costs less."""
    generator, tokenizer = build(PRESETS[name], scope.device)
    sampling = PRESETS[name].sampling
    requests = [ImageRequest(class_id=n, seed=n, sampling=sampling) for n in range(4)]
    for precision in PRECISIONS:
        about: Report = {"preset": name, "dtype": precision}
        needed_s = 10 + 0.2 * PRESETS[name].generator.num_tokens
        with record.attempt("quality", about, needed_s) as has_time:
            if has_time:
                kind = PRECISIONS[precision]
                quality = measure_quality(generator, tokenizer, kind, requests)
                record.add("quality", {**about, **asdict(quality)})


def _median_s(function: Callable[[], object]) -> float:
    """Time a function that waits for its result."""
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def _no_file(pixels: NDArray[np.uint8]) -> bytes:
    return NO_FILE


def _free() -> None:
    gc.collect()  # an engine and its graphs know each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


def _shown(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
