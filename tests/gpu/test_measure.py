"""Facts of the script that measures on a GPU, tried on the processor."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.gpu.measure import DRY_RUN, Record, _run_tests, main

ROOT = Path(__file__).parents[2]


def test_a_dry_run_makes_every_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is one line of JSON, nothing is skipped, and the table has a row for each batch."""
    output = tmp_path / "table.md"
    assert 0 == main(["--dry-run", "--skip-tests", "--output", str(output)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    counts = {"device": 1, "decoder": 2, "latency": 1, "throughput": 2, "quality": 3}
    names = [line["measurement"] for line in lines]
    assert counts == {name: names.count(name) for name in dict.fromkeys(names)}
    throughput = [line for line in lines if line["measurement"] == "throughput"]
    for name in ("images_per_s", "ms_per_step", "roofline_share", "peak_gb", "ready_s"):
        assert all(line[name] > 0 for line in throughput)
    table = output.read_text("utf-8")
    assert 2 == table.count("| digits | float32 |")
    assert "quality: preset digits, dtype fp8" in table


def test_the_tests_run_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of their own; how many passed, failed or were skipped is a line too."""
    record = Record(DRY_RUN, tmp_path / "table.md")
    assert _run_tests(DRY_RUN, record)
    (line,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ("tests", 0) == (line["measurement"], line["status"])
    assert 0 < line.get("passed", 0) + line.get("skipped", 0)


def test_tests_that_hang_are_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have failed, and there is time to measure still."""
    assert not _run_tests(replace(DRY_RUN, tests_s=0.01), Record(DRY_RUN, tmp_path / "table.md"))
    assert "no end after 0.01 s" in capsys.readouterr().out


def run_out_of_memory() -> None:
    """Fail as torch does."""
    raise torch.OutOfMemoryError


def test_what_time_or_memory_does_not_allow_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the reason, in the lines and in the file, and what comes after goes on."""
    record = Record(DRY_RUN, tmp_path / "table.md")
    with record.attempt("throughput", {"batch": 64}, 1e6) as has_time:
        assert not has_time
    with record.attempt("throughput", {"batch": 256}, 1) as has_time:
        assert has_time
        run_out_of_memory()
    with pytest.raises(ZeroDivisionError), record.attempt("throughput", {}, 1):
        raise ZeroDivisionError
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [("skipped", 64), ("skipped", 256)] == [
        (line["measurement"], line["batch"]) for line in lines
    ]
    assert "needs about 1000000 s" in lines[0]["reason"]
    assert "does not fit into the memory" in (tmp_path / "table.md").read_text("utf-8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, and what to do instead."""
    assert 1 == main([])
    assert "--dry-run" in capsys.readouterr().err


def test_it_needs_no_more_than_the_model_package() -> None:
    """Neither the service nor what it stands on is imported, so that a bare machine will do."""
    script = (
        "import sys, tests.gpu.measure\n"
        "names = ('service', 'training', 'pydantic', 'fastapi', 'PIL', 'httpx', 'pytest')\n"
        "sys.exit(any(name in sys.modules for name in names))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
