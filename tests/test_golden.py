"""Parity with the published model, on every golden file of `tests/golden/data`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.__main__ import DATA, golden_files, main
from tests.golden.check import close, equal
from tests.golden.generator_checks import generator_checks

FILES = list(golden_files(DATA))


@pytest.mark.parametrize(("path", "suite"), FILES, ids=[path.stem for path, _ in FILES])
def test_golden_file(path: Path, suite: object) -> None:
    """Every number of every golden file is reproduced within its limit."""
    checks = list(suite(path))  # type: ignore[operator]
    assert checks
    assert [str(check) for check in checks if not check.passed] == []


def test_all_suites_have_files() -> None:
    """The committed data covers trunk, head, tokenizer, full-size decoder and published keys."""
    assert len({suite for _, suite in FILES}) == 4
    assert len(FILES) == 12


def test_a_wrong_number_fails(tmp_path: Path) -> None:
    """A golden value moved by 1e-4 fails the checks that it enters, and no others."""
    with np.load(DATA / "bar_tiny_patch1.npz") as file:
        arrays = dict(file)
    arrays["latents_random"] = arrays["latents_random"] + np.float32(1e-4)
    np.savez(tmp_path / "bar_tiny_moved.npz", **arrays)
    failed = [c.name for c in generator_checks(tmp_path / "bar_tiny_moved.npz") if not c.passed]
    assert failed == ["latents_random"]


def test_shape_and_nan_fail() -> None:
    """A result of another shape, or with a NaN, never passes."""
    assert not close("x", torch.zeros(2), np.zeros(3)).passed
    assert not equal("x", torch.zeros(2), np.zeros(3)).passed
    assert not close("x", torch.tensor([float("nan")]), np.zeros(1)).passed


def test_empty_directory_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command exits 1 where there is nothing to check, saying what it looked for."""
    monkeypatch.setattr("sys.argv", ["tests.golden", str(tmp_path)])
    assert main() == 1
    assert "bar_tiny_*.npz" in capsys.readouterr().out
