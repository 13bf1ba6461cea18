"""Webdataset shards and parquet files."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.training.pictures_on_disk import picture
from training.data_path import open_source
from training.errors import TrainingError


def png(seed: int) -> bytes:
    """Encode a picture."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar file."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_shards_are_read_at_random(tmp_path: Path) -> None:
    """Pictures of all shards are one source; classes come from .cls or .json beside them."""
    shard(
        tmp_path / "a-0.tar",
        {"x/0.png": png(0), "x/0.cls": b"owl\n", "x/1.cls": b"elk"} | {"x/1.png": png(1)},
    )
    shard(tmp_path / "a-1.tar", {"2.png": png(2), "2.json": json.dumps({"label": "owl"}).encode()})
    source = open_source(tmp_path)
    assert ("elk", "owl") == source.class_names
    assert [1, 0, 1] == source.class_ids.tolist()
    for index in (2, 0, 1):
        assert picture(index).tobytes() == source.open(index).tobytes()
    assert "a-1.tar:2.png" == source.name_of(2)


def test_picture_without_class_is_refused(tmp_path: Path) -> None:
    """A picture that no file beside it labels is an error that says what is expected."""
    with pytest.raises(TrainingError, match=r"7\.png has no class: expected 7\.cls"):
        open_source(shard(tmp_path / "a.tar", {"7.png": png(0)}))
    (tmp_path / "a.tar").write_bytes(b"no archive at all, but long enough" * 40)
    with pytest.raises(TrainingError, match="cannot read"):
        open_source(tmp_path / "a.tar")


def write_parquet(path: Path, labels: list[object], names: list[str] | None) -> None:
    """Write pictures as Hugging Face data sets do, two to a row group."""
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'bar-serve[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": png(index), "path": None} for index in range(len(labels))]
    table = pyarrow.table({"image": images, "label": labels})
    if names is not None:
        feature = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(feature)})
    parquet.write_table(table, path, row_group_size=2)


def test_parquet_with_named_classes(tmp_path: Path) -> None:
    """Class names stand in the schema, and every row group is reached."""
    write_parquet(tmp_path / "train-0.parquet", [2, 0, 1, 0, 2], ["owl", "elk", "cat"])
    source = open_source(tmp_path)
    assert ("owl", "elk", "cat") == source.class_names
    assert [2, 0, 1, 0, 2] == source.class_ids.tolist()
    for index in (4, 0, 3):
        with source.open(index) as opened:
            assert isinstance(opened, Image.Image)
            assert picture(index).tobytes() == opened.tobytes()


def test_parquet_with_classes_as_text(tmp_path: Path) -> None:
    """Without names in the schema the labels themselves are the names."""
    write_parquet(tmp_path / "one.parquet", ["owl", "elk", "owl"], None)
    source = open_source(tmp_path / "one.parquet")
    assert ("elk", "owl") == source.class_names
    assert [1, 0, 1] == source.class_ids.tolist()
