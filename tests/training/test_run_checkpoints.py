"""Checkpoints on disk."""

from pathlib import Path

import pytest
import torch

from training.errors import TrainingError
from training.run_checkpoints import RunCheckpoints, read_checkpoint


def test_newest_is_found_and_old_ones_go(tmp_path: Path) -> None:
    """Steps sort as numbers, and only the last two files stay."""
    checkpoints = RunCheckpoints(tmp_path)
    assert checkpoints.latest() is None
    for step in (9, 10, 200):
        checkpoints.save(step, {"step": step})
    assert checkpoints.latest() == tmp_path / "step-00000200.pt"
    assert ["step-00000010.pt", "step-00000200.pt"] == sorted(p.name for p in tmp_path.iterdir())


def test_unfinished_file_is_no_checkpoint(tmp_path: Path) -> None:
    """A draft that a killed writer left behind is never taken for a checkpoint."""
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(1, {"step": 1})
    (tmp_path / ".step-00000002.pt.draft").write_bytes(b"half")
    assert checkpoints.latest() == tmp_path / "step-00000001.pt"


def test_failed_write_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    """If writing fails, the file under the name is the old one, and no draft stays."""

    class Unwritable:
        def __reduce__(self) -> str:
            raise RuntimeError("no space left")

    checkpoints = RunCheckpoints(tmp_path)
    path = checkpoints.save(1, {"value": torch.tensor(1.0)})
    with pytest.raises(TrainingError, match="no space left"):
        checkpoints.save(1, {"value": Unwritable()})
    assert 1.0 == read_checkpoint(path)["value"]
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04truncated"])
def test_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no checkpoint gives an error with its name."""
    path = tmp_path / "step-00000001.pt"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"step-00000001\.pt"):
        read_checkpoint(path)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    """A checkpoint that would call a function when unpickled is refused."""

    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "ran"),))  # type: ignore[return-value]

    path = tmp_path / "step-00000001.pt"
    torch.save({"step": Malicious()}, path)
    with pytest.raises(TrainingError, match="cannot read"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()
