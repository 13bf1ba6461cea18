"""Pictures inside larger files: webdataset shards (.tar) and Hugging Face data sets (.parquet).

Opened by `data_path.py`. Shards are indexed once and then read at random, so that the
order of the pictures is the trainer's affair and a run can go on exactly; a streaming reader could
do neither. Parquet needs the extra `parquet`.
"""

import io
import json
import tarfile
import threading
from collections import defaultdict
from collections.abc import Sequence
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
    """Pictures in a column of parquet files, as Hugging Face data sets store them.

    Labels are held; of pictures, the row groups that were read last.
    """

    def __init__(self, paths: list[Path], class_column: str | None = None) -> None:
        try:
            from pyarrow import ArrowInvalid, parquet  # noqa: PLC0415  an extra
        except ImportError as error:
            raise TrainingError(
                "parquet files need an extra: pip install 'bar-serve[parquet]'"
            ) from error
        try:
            self._files = [parquet.ParquetFile(path) for path in paths]
        except (OSError, ArrowInvalid) as error:
            names = ", ".join(path.name for path in paths)
            raise TrainingError(f"cannot read {names}: {error}") from error
        self._paths = paths
        schema = self._files[0].schema_arrow
        features = _features(schema.metadata or {})
        self._image = _column(paths[0], schema.names, features, "Image", PATH_COLUMNS)
        label = class_column or _column(
            paths[0], schema.names, features, "ClassLabel", CLASS_COLUMNS
        )
        if label not in schema.names:
            raise TrainingError(f"{paths[0]} has columns {', '.join(schema.names)}, no {label}")
        labels = [v for file in self._files for v in file.read([label])[label].to_pylist()]
        self.class_names, self.class_ids = _classes(
            paths[0], label, labels, features.get(label, {}).get("names")
        )
        self._groups = _row_groups(self._files)
        self._lock = threading.Lock()  # several threads read pictures, a file reads one group
        self._read_group = lru_cache(maxsize=8)(self._read_group_uncached)

    def name_of(self, index: int) -> str:
        group, row = self._locate(index)
        return f"{self._paths[self._groups[group][0]].name}, row {row} of group {group}"

    def open(self, index: int) -> Image.Image:
        group, row = self._locate(index)
        with self._lock:
            value = self._read_group(group)[row].as_py()
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

    def _read_group_uncached(self, group: int) -> Any:
        file, number, _ = self._groups[group]
        return self._files[file].read_row_group(number, [self._image])[self._image]


def open_parquet(paths: list[Path], class_column: str | None = None) -> ImageSource:
    """Open parquet files with a column of pictures and one of classes."""
    return ParquetImages(paths, class_column)


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """Return what Hugging Face keeps in the schema of each column: its kind, its classes' names."""
    told = json.loads(metadata.get(b"huggingface", b"{}"))
    features: dict[str, Any] = told.get("info", {}).get("features", {})
    return features


def _column(
    path: Path, names: list[str], features: dict[str, Any], kind: str, usual: tuple[str, ...]
) -> str:
    """Return the column of a kind, or else the one with a usual name."""
    of_kind = [
        name
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == kind and name in names
    ]
    if len(of_kind) == 1:
        return of_kind[0]
    if named := [name for name in usual if name in (of_kind or names)]:
        return named[0]
    if of_kind:
        raise TrainingError(
            f"{path} has several columns of kind {kind}: {', '.join(of_kind)}; choose with "
            f"?class={of_kind[0]} after hf://owner/name"
        )
    raise TrainingError(f"{path} has columns {', '.join(names)}: none is {', '.join(usual)}")


def _classes(
    path: Path, column: str, labels: list[Any], names: Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    if (missing := labels.count(None)) or (names and -1 in labels):
        missing = missing or labels.count(-1)
        raise TrainingError(
            f"{path}: {missing} of {len(labels)} rows have no {column}: take a split with classes"
        )
    if not names:
        return classes_of([str(value) for value in labels])
    ids = np.array(labels, dtype=np.int64)
    if len(ids) and not 0 <= ids.min() <= ids.max() < len(names):
        raise TrainingError(
            f"{path}: {column} has ids from {ids.min()} to {ids.max()}, and {len(names)} names"
        )
    return tuple(names), ids


def _row_groups(files: list[Any]) -> list[tuple[int, int, int]]:
    """Return file, number and rows of every row group."""
    counts: dict[int, list[int]] = defaultdict(list)
    for index, file in enumerate(files):
        counts[index] = [
            file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)
        ]
    return [(index, g, rows) for index, group in counts.items() for g, rows in enumerate(group)]
