"""Facts of `bar bench engine`: a report on one line, and progress beside it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from service.cli import main as bar
from service.commands.bench_engine import main
from service.errors import StartupError


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Give torch back the threads that it had."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output holds exactly one line of JSON, standard error the progress."""
    flags = ["--batch", "2", "--images", "2", "--runs", "1", "--against", "twin", "--json"]
    assert 0 == bar(["bench", "engine", "--model", "digits", "--random-weights", *flags])
    shown = capsys.readouterr()
    assert 1 == shown.out.count("\n") == len(shown.out.splitlines())
    report = json.loads(shown.out)
    wanted = "images_per_s ms_per_step peak_memory_bytes roofline_share ratio_to_twin ready_s"
    assert all(report[name] > 0 for name in wanted.split())
    assert (2, 2, "cpu") == (report["batch"], report["images"], report["device"])
    assert "run 1 of 1" in shown.err


def test_a_table_is_for_people(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json, a name and a number stand on each line; the weights may be real ones."""
    flags = ["--batch", "1", "--runs", "1", "--dtype", "bfloat16"]
    assert 0 == main(["--model", str(tiny_model_dir), *flags])
    table = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(table["images_per_s"]) > 0
    assert ("bfloat16", "1") == (table["dtype"], table["images"])


def test_random_weights_are_for_presets(tiny_model_dir: Path) -> None:
    """A directory has weights of its own."""
    with pytest.raises(StartupError, match="--random-weights takes digits, bar-b-patch4"):
        main(["--model", str(tiny_model_dir), "--random-weights"])


def test_an_unknown_model_is_an_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, and the name that came."""
    assert 1 == bar(["bench", "engine", "--model", "digit"])
    shown = capsys.readouterr()
    assert "" == shown.out
    assert 1 == shown.err.count("\n")
    assert "bar bench: there is no model and no directory 'digit'" in shown.err
