"""Trackers: TensorBoard as it is read back, others through accelerate's base class."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.tracking import GeneralTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.errors import TrainingError
from training.trackers import MEMORY_FILE, Trackers, choose_trackers, flat, open_trackers


class Diary(GeneralTracker):  # type: ignore[misc] # ships no types
    """A tracker that writes down what it is told."""

    name = "diary"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.told: list[tuple[int, dict[str, Any]]] = []
        self.fails_at = fails_at

    @property
    def tracker(self) -> list[tuple[int, dict[str, Any]]]:
        return self.told

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        assert step is not None
        if step == self.fails_at:
            raise ConnectionError("the server is gone")
        self.told.append((step, values))


def row(step: int, split: str = "train") -> dict[str, Any]:
    """Make a row of metrics whose loss is its step."""
    return {"step": step, "split": split, "loss": float(step)}


def open_tensorboard(folder: Path, said: list[str] | None = None) -> Trackers:
    """Open the tracker of a stage in a run's folder."""
    names, settings = choose_trackers(["tensorboard"]), {"training": {"num_steps": 4}}
    say = (said if said is not None else []).append
    return open_trackers(names, folder, "generator", "tiny", settings, say)


def read_events(folder: Path) -> EventAccumulator:
    """Read back all event files of the stage."""
    events = EventAccumulator(str(folder / "tensorboard" / "generator"))
    events.Reload()
    return events


def test_unknown_trackers_are_refused_by_name() -> None:
    """A tracker that is not known is named, and those that are."""
    with pytest.raises(TrainingError, match=r"no tracker 'tensorbord'.*tensorboard, wandb"):
        choose_trackers(["tensorbord"])


def test_absent_trackers_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not installed is an error; TensorBoard is left out silently if nobody asked."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TrainingError, match="tracker mlflow is not installed: pip install mlflow"):
        choose_trackers(["mlflow"])
    assert () == choose_trackers(None)
    assert () == choose_trackers([])


def test_tensorboard_is_the_default() -> None:
    """Where it is installed nobody has to ask for it; a name given twice counts once."""
    assert ("tensorboard",) == choose_trackers(None)
    assert ("tensorboard",) == choose_trackers(["tensorboard", "tensorboard"])


def test_tensorboard_reads_back_what_was_told(tmp_path: Path) -> None:
    """Scalars of each split, the sample sheets and the settings stand in the event file."""
    trackers = open_tensorboard(tmp_path)
    trackers.row({**row(0, "held_out"), "note": "no number"})
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    sheet = tmp_path / "sheet.png"
    Image.fromarray(pixels).save(sheet)
    trackers.picture(0, sheet)
    trackers.row(row(2))
    trackers.finish()
    events = read_events(tmp_path)
    assert ["held_out/loss", "train/loss"] == sorted(events.Tags()["scalars"])
    assert [(2, 2.0)] == [(event.step, event.value) for event in events.Scalars("train/loss")]
    image = events.Images("samples")[0]
    assert (4, 4) == (image.height, image.width)
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"num_steps": 4' in text


def test_a_resumed_run_repeats_no_step(tmp_path: Path) -> None:
    """Going on from step 1 after step 2 was told, step 2 stands there once, then step 3."""
    first = open_tensorboard(tmp_path)
    for step in (1, 2):
        first.row(row(step))
    # Killed: nobody calls finish.
    second = open_tensorboard(tmp_path)
    for step in (2, 3):
        second.row(row(step))
    second.row(row(3, "held_out"))
    second.finish()
    first.finish()
    events = read_events(tmp_path)
    assert [1, 2, 3] == [event.step for event in events.Scalars("train/loss")]
    assert [3] == [event.step for event in events.Scalars("held_out/loss")]


def test_each_tracker_remembers_what_it_was_told(tmp_path: Path) -> None:
    """A tracker that was added later hears the repeated steps that another knows already."""
    memory, old, new = tmp_path / MEMORY_FILE, Diary(), Diary()
    Trackers({"old": old}, memory, print).row(row(2))
    both = Trackers({"old": old, "new": new}, memory, print)
    both.row(row(2))
    both.row(row(3))
    assert [2, 3] == [step for step, _ in old.told]
    assert [(2, {"train/loss": 2.0}), (3, {"train/loss": 3.0})] == new.told


def test_a_tracker_that_fails_is_left_out(tmp_path: Path) -> None:
    """The run goes on, the others are told, and somebody hears of it, once."""
    failing, well, said = Diary(fails_at=2), Diary(), list[str]()
    trackers = Trackers({"failing": failing, "well": well}, tmp_path / MEMORY_FILE, said.append)
    for step in (1, 2, 3):
        trackers.row(row(step))
    trackers.finish()
    assert [1] == [step for step, _ in failing.told]
    assert [1, 2, 3] == [step for step, _ in well.told]
    assert ["the tracker failing failed and is left out from here: the server is gone"] == said


def test_a_tracker_that_cannot_start_stops_the_run(tmp_path: Path) -> None:
    """A folder that is a file is an error before the first step, with the tracker's name."""
    (tmp_path / "tensorboard").write_text("in the way", encoding="utf-8")
    with pytest.raises(TrainingError, match="tracker tensorboard cannot be started"):
        open_tensorboard(tmp_path)


def test_settings_are_flattened() -> None:
    """Trackers take names and plain values: sections become dots, lists and nothing text."""
    settings = {"seed": 0, "data": {"path": "x", "flip": True}, "frozen": ["a"], "start": None}
    expected = {"seed": 0, "data.path": "x", "data.flip": True, "frozen": '["a"]', "start": "null"}
    assert expected == flat(settings)
