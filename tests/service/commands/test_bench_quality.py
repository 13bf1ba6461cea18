"""`bar bench quality`, on the bundled model."""

import json

import pytest

from service.cli import main


def test_precisions_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """float32 flips no bit; bfloat16 errs, and fp8 errs more."""
    reports = {}
    for dtype in ("float32", "bfloat16", "fp8"):
        assert 0 == main(["bench", "quality", "--dtype", dtype, "--images", "10", "--json"])
        (line,) = capsys.readouterr().out.splitlines()
        reports[dtype] = json.loads(line)
    assert 0 == reports["float32"]["bit_flip_rate"]
    errors = [reports[dtype]["logit_error"] for dtype in ("float32", "bfloat16", "fp8")]
    assert errors == sorted(errors)


def test_figures_read_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json each figure has a line of its own."""
    assert 0 == main(["bench", "quality", "--images", "2"])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names[:3] == ["model", "dtype", "images"]
    assert {"latent_error", "logit_error", "bit_flip_rate", "pixel_error"} < set(names)
