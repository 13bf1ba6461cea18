"""Folders and manifests of pictures."""

import json
from pathlib import Path

import pytest

from tests.training.pictures_on_disk import picture, picture_folder
from training.data_path import open_source
from training.errors import TrainingError


def test_folders_are_classes(tmp_path: Path) -> None:
    """Each folder is a class, in the order of the names; the files inside may lie deeper."""
    picture_folder(tmp_path, {"dog": 2, "cat": 3})
    (tmp_path / "dog" / "more").mkdir()
    picture(7).save(tmp_path / "dog" / "more" / "x.JPEG")
    (tmp_path / "dog" / "notes.txt").write_text("no picture", "utf-8")
    source = open_source(tmp_path)
    assert ("cat", "dog") == source.class_names
    assert [0, 0, 0, 1, 1, 1] == source.class_ids.tolist()
    assert "dog/more/x.JPEG" == source.name_of(5)
    assert picture(0).tobytes() == source.open(3).tobytes()


def test_pictures_without_folders_are_one_class(tmp_path: Path) -> None:
    """One class is legal, and called like the folder."""
    folder = picture_folder(tmp_path, {"fonts": 3}) / "fonts"
    source = open_source(folder)
    assert ("fonts",) == source.class_names
    assert 3 == len(source.class_ids)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_manifest_names_files_and_classes(tmp_path: Path, kind: str) -> None:
    """Rows name a file relative to the manifest and a class; both forms say the same."""
    picture_folder(tmp_path, {"a": 2})
    rows = [("a/000.png", "owl"), ("a/001.png", "elk, red")]
    path = tmp_path / f"set.{kind}"
    if kind == "csv":
        path.write_text('file_name,label\na/000.png,owl\na/001.png,"elk, red"\n', "utf-8")
    else:
        lines = [json.dumps({"path": name, "class": label}) + "\n" for name, label in rows]
        path.write_text("\n".join(lines), "utf-8")
    source = open_source(path)
    assert ("elk, red", "owl") == source.class_names
    assert [1, 0] == source.class_ids.tolist()
    assert picture(1).tobytes() == source.open(1).tobytes()


@pytest.mark.parametrize(
    ("kind", "text"),
    [("csv", "path,class\na/000.png,owl\n"), ("jsonl", '{"path": "a/000.png", "class": "owl"}\n')],
)
def test_byte_order_mark_is_no_part_of_a_manifest(tmp_path: Path, kind: str, text: str) -> None:
    """What Excel and Windows editors save begins with a mark, and reads like any other."""
    picture_folder(tmp_path, {"a": 1})
    path = tmp_path / f"set.{kind}"
    path.write_text(text, "utf-8-sig")
    source = open_source(path)
    assert (("owl",), "a/000.png") == (source.class_names, source.name_of(0))


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    """The same files have the same fingerprint; a changed one another."""
    before = open_source(picture_folder(tmp_path, {"a": 2})).fingerprint
    assert before == open_source(tmp_path).fingerprint
    (tmp_path / "a" / "001.png").write_bytes(b"shorter")
    assert before != open_source(tmp_path).fingerprint


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("set.jsonl", "{", "line 1: no JSON"),
        ("set.jsonl", '{"path": "a.png"}', "line 1: needs one of path.* has path"),
        ("set.csv", "path,colour\na.png,red\n", "line 2: needs"),
        ("set.csv", "path,class\n", "names no pictures"),
        ("set.zip", "", "is no data set"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    """A manifest without paths or classes, and a file of no known kind, are errors."""
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(TrainingError, match=message):
        open_source(tmp_path / name)


def test_empty_and_missing_folders_are_refused(tmp_path: Path) -> None:
    """A folder without pictures says which endings count."""
    with pytest.raises(TrainingError, match=r"has no pictures.*\.png"):
        open_source(tmp_path)
    with pytest.raises(TrainingError, match="there is no data at"):
        open_source(tmp_path / "missing")
