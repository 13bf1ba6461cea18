"""Facts of `bar download`: what cannot be fetched is told, what is here is not fetched."""

from pathlib import Path

import pytest

from model.errors import CheckpointError
from service.commands.download import main


def test_a_model_that_is_here_is_not_fetched(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says where the model lies."""
    assert 0 == main([str(tiny_model_dir)])
    assert capsys.readouterr().out.rstrip().endswith(f"is in {tiny_model_dir}")


def test_an_unknown_model_is_refused() -> None:
    """A name that is no preset is answered with those that are."""
    with pytest.raises(CheckpointError, match="did you mean bar-b"):
        main(["bar-bb"])
