"""Pictures inside larger files: webdataset shards (.tar) and Hugging Face data sets (.parquet).

Opened by `data_path.py`. Shards are indexed once and then read at random, so that the
order of the pictures is the trainer's affair and a run can go on exactly; a streaming reader could
do neither. Parquet needs the extra `parquet`.
"""

import io
import json
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.errors import TrainingError
from training.image_sources import (
    CLASS_COLUMNS,
    PATH_COLUMNS,
    SUFFIXES,
    ImageSource,
    classes_of,
    fingerprint_of,
)

TEXT_LABELS = (".cls", ".txt")


@dataclass(frozen=True)
class Stretch:
    """Where a picture's bytes lie."""

    path: Path
    name: str
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class ShardImages:
    """Pictures in tar files, each with its class beside it (`key.jpg`, `key.cls` or `key.json`)."""

    stretches: tuple[Stretch, ...]
    class_ids: NDArray[np.int64]
    class_names: tuple[str, ...]

    def name_of(self, index: int) -> str:
        stretch = self.stretches[index]
        return f"{stretch.path.name}:{stretch.name}"

    def open(self, index: int) -> Image.Image:
        stretch = self.stretches[index]
        with stretch.path.open("rb") as file:
            file.seek(stretch.offset)
            return Image.open(io.BytesIO(file.read(stretch.num_bytes)))

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(
            (part.path.name, part.name, part.offset, part.num_bytes) for part in self.stretches
        )


def open_shards(paths: list[Path]) -> ImageSource:
    """Index webdataset shards. Raises TrainingError for a picture without a class."""
    stretches, labels = [], []
    for path in paths:
        pictures, told = _index(path)
        for key, stretch in pictures.items():
            if key not in told:
                raise TrainingError(
                    f"{path}: {stretch.name} has no class: expected {key}.cls, or {key}.json with "
                    f"one of {', '.join(CLASS_COLUMNS)}"
                )
            stretches.append(stretch)
            labels.append(told[key])
    if not stretches:
        raise TrainingError(f"no pictures in {', '.join(path.name for path in paths)}")
    names, ids = classes_of(labels)
    return ShardImages(tuple(stretches), ids, names)


def _index(path: Path) -> tuple[dict[str, Stretch], dict[str, str]]:
    """Return where the picture of each key lies, and the class of each key that tells one."""
    pictures: dict[str, Stretch] = {}
    told: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = Path(member.name)
                key, suffix = name.with_suffix("").as_posix(), name.suffix.lower()
                if not member.isfile():
                    continue
                if suffix in SUFFIXES:
                    pictures[key] = Stretch(path, member.name, member.offset_data, member.size)
                elif suffix in TEXT_LABELS or suffix == ".json":
                    content = archive.extractfile(member)
                    assert content is not None
                    if (label := _label(content.read(), suffix)) is not None:
                        told[key] = label
    except (tarfile.TarError, OSError, ValueError) as error:
        raise TrainingError(f"cannot read {path}: {error}") from error
    return pictures, told


def _label(content: bytes, suffix: str) -> str | None:
    text = content.decode("utf-8").strip()
    if suffix in TEXT_LABELS:
        return text
    values = json.loads(text)
    found = (values[name] for name in CLASS_COLUMNS if name in values)
    return next((str(value) for value in found), None)


class ParquetImages:
    """Pictures in a column of parquet files, as Hugging Face data sets store them."""

    def __init__(self, paths: list[Path]) -> None:
        try:
            import pyarrow.parquet  # noqa: PLC0415  an extra
        except ImportError as error:
            raise TrainingError(
                "parquet files need an extra: pip install 'bar-serve[parquet]'"
            ) from error
        self._files = [pyarrow.parquet.ParquetFile(path) for path in paths]
        self._paths = paths
        schema = self._files[0].schema_arrow
        self._image = _column(paths[0], schema.names, PATH_COLUMNS)
        label = _column(paths[0], schema.names, CLASS_COLUMNS)
        labels = [v for file in self._files for v in file.read([label])[label].to_pylist()]
        known = _feature_names(schema.metadata or {}, label)
        if known is None:
            self.class_names, self.class_ids = classes_of([str(value) for value in labels])
        else:
            self.class_names, self.class_ids = known, np.array(labels, dtype=np.int64)
        self._groups = _row_groups(self._files)
        self._read_group = lru_cache(maxsize=8)(self._read_group_uncached)

    def name_of(self, index: int) -> str:
        group, row = self._locate(index)
        return f"{self._paths[self._groups[group][0]].name}, row {row} of group {group}"

    def open(self, index: int) -> Image.Image:
        group, row = self._locate(index)
        value = self._read_group(group)[row]
        content = value["bytes"] if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise ValueError("the cell holds no picture")  # noqa: TRY004  a bad picture, not a bad call
        return Image.open(io.BytesIO(content))

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of((path.name, path.stat().st_size) for path in self._paths)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(rows for _, _, rows in self._groups)])

    def _locate(self, index: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return group, index - int(self._starts[group])

    def _read_group_uncached(self, group: int) -> list[Any]:
        file, number, _ = self._groups[group]
        table = self._files[file].read_row_group(number, [self._image])
        values: list[Any] = table[self._image].to_pylist()
        return values


def open_parquet(paths: list[Path]) -> ImageSource:
    """Open parquet files with a column of pictures and one of classes."""
    return ParquetImages(paths)


def _column(path: Path, names: list[str], wanted: tuple[str, ...]) -> str:
    for name in wanted:
        if name in names:
            return name
    raise TrainingError(f"{path} has columns {', '.join(names)}: none is {', '.join(wanted)}")


def _row_groups(files: list[Any]) -> list[tuple[int, int, int]]:
    """Return file, number and rows of every row group."""
    counts: dict[int, list[int]] = defaultdict(list)
    for index, file in enumerate(files):
        counts[index] = [
            file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)
        ]
    return [(index, g, rows) for index, group in counts.items() for g, rows in enumerate(group)]


def _feature_names(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...] | None:
    """Return the names of a ClassLabel column, which Hugging Face keeps in the schema."""
    told = json.loads(metadata.get(b"huggingface", b"{}"))
    feature = told.get("info", {}).get("features", {}).get(label, {})
    names = feature.get("names")
    return tuple(names) if names else None
