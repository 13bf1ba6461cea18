"""Facts of `bar models`: every preset has a row, also where it is not on this machine."""

from pathlib import Path

import pytest

from model.zoo import model_names
from service.commands.models import main


def test_every_model_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes come from the preset; what is not here says how to get it."""
    assert 0 == main(["--cache-dir", str(tmp_path)])
    heading, *rows = capsys.readouterr().out.splitlines()
    assert ["name", "image", "steps", "bits/token", "classes"] == heading.split()[:5]
    assert model_names() == [row.split()[0] for row in rows]
    (row,) = (row for row in rows if row.startswith("bar-b "))
    assert ["256x256", "256", "16", "1000", "-"] == row.split()[1:6]
    assert row.endswith("bar download bar-b")
