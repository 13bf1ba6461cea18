"""Names of a model's classes, and the look-up from what a user writes to a class.

Read by the API and the command line, which turn a class index, a WordNet id or a name into the
class id that the generator takes. A look-up never guesses: a name that belongs to two classes
(ImageNet has two cranes) or to none is refused, and the error carries the classes that may have
been meant.

Source: `assets/imagenet_classes.tsv` holds the 1000 ImageNet-1k classes in label order.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self, overload

IMAGENET_FILE = Path(__file__).parent / "assets" / "imagenet_classes.tsv"

_WORDNET_ID = re.compile(r"n\d{8}")
_MAX_SUGGESTIONS = 5
_MIN_SIMILARITY = 0.65  # of difflib's ratio; lower and suggestions turn into noise
_MAX_FUZZY_LEN = 64  # twice the longest ImageNet name: comparing is quadratic in the length


@dataclass(frozen=True)
class ClassLabel:
    """One class: its index in the model, its WordNet id if it has one, and its names."""

    index: int
    wordnet_id: str | None
    names: tuple[str, ...]  # the usual one first

    @property
    def name(self) -> str:
        return self.names[0]

    def __str__(self) -> str:
        wordnet_id = f" ({self.wordnet_id})" if self.wordnet_id else ""
        return f"{self.index} {self.name}{wordnet_id}"


class UnknownClassError(KeyError):
    """No class has this index, id or name; `candidates` are the nearest ones."""

    def __init__(self, message: str, candidates: Sequence[ClassLabel] = ()) -> None:
        super().__init__(message)
        self.candidates = list(candidates)

    def __str__(self) -> str:  # KeyError would show the message's repr
        return str(self.args[0])


class AmbiguousClassError(KeyError):
    """Several classes have this name; `candidates` are all of them."""

    def __init__(self, message: str, candidates: Sequence[ClassLabel]) -> None:
        super().__init__(message)
        self.candidates = list(candidates)

    def __str__(self) -> str:
        return str(self.args[0])


def _normalize(text: str) -> str:
    """Fold what people write differently: case, spaces, underscores and hyphens."""
    return re.sub(r"[\s_-]+", " ", text).strip().casefold()


@dataclass(frozen=True)
class ClassLabels(Sequence[ClassLabel]):
    """The classes of one model, in index order."""

    labels: tuple[ClassLabel, ...]

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("a model needs at least one class, got no labels")
        wordnet_ids: set[str] = set()
        for position, label in enumerate(self.labels):
            _check_label(label, position)
            if label.wordnet_id in wordnet_ids:
                raise ValueError(f"two classes have the WordNet id {label.wordnet_id}")
            if label.wordnet_id:
                wordnet_ids.add(label.wordnet_id)

    @classmethod
    def imagenet(cls) -> "ClassLabels":
        """Return the 1000 classes of ImageNet-1k."""
        return _read_imagenet()

    @classmethod
    def from_names(cls, names: Iterable[str | Sequence[str]]) -> Self:
        """Build labels from one name, or several names, for each class."""
        listed = [(name,) if isinstance(name, str) else tuple(name) for name in names]
        return cls(tuple(ClassLabel(i, None, each) for i, each in enumerate(listed)))

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"names": list(label.names)}
            | ({"wordnet_id": label.wordnet_id} if label.wordnet_id else {})
            for label in self.labels
        ]

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Build labels from what `to_json` returned; ValueError names the entry that is wrong."""
        if not isinstance(values, list):
            raise ValueError(f"class labels must be a list, got {type(values).__name__}")  # noqa: TRY004
        labels = []
        for index, value in enumerate(values):
            match value:
                case {"names": [*names], "wordnet_id": str(wordnet_id), **rest} if not rest:
                    labels.append(ClassLabel(index, wordnet_id, tuple(names)))
                case {"names": [*names], **rest} if not rest:
                    labels.append(ClassLabel(index, None, tuple(names)))
                case _:
                    raise ValueError(
                        f"class {index} must be an object of a list of names and, optionally, "
                        "a wordnet_id"
                    )
        return cls(tuple(labels))

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> ClassLabel: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ClassLabel]: ...
    def __getitem__(self, index: int | slice) -> ClassLabel | Sequence[ClassLabel]:
        return self.labels[index]

    def __iter__(self) -> Iterator[ClassLabel]:
        return iter(self.labels)

    def find(self, query: int | str) -> ClassLabel:
        """Return the class with this index, decimal index, WordNet id or name.

        A name wins over a decimal index, so that classes called "10" and "20" can be asked for.
        Raises UnknownClassError with the nearest classes, or AmbiguousClassError with all the
        classes of that name.
        """
        if isinstance(query, int):
            return self._at(query)
        key = _normalize(query)
        found = self._by_key.get(key, ())
        if len(found) > 1:
            raise AmbiguousClassError(
                f"{len(found)} classes have this name: {_listed(found)}; "
                "ask by index or WordNet id",
                found,
            )
        if found:
            return found[0]
        if key.isascii() and key.isdecimal():
            # A number too long to be an index is not converted: that takes quadratic time.
            return self._at(int(key) if len(key) < 10 else None)
        raise self._unknown(key)

    def called(self, name: str) -> Sequence[ClassLabel]:
        """Return the classes with this WordNet id or name: none, one, or several."""
        return tuple(self._by_key.get(_normalize(name), ()))

    def search(self, query: str, limit: int = 10) -> list[ClassLabel]:
        """Return at most `limit` classes, best match first.

        Ranked: the index, WordNet id or a name is the query; an id or name begins with it; a
        word of a name is it; a word begins with it; a name contains it; a name resembles it.
        Classes of equal rank stand in index order.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        key = _normalize(query)
        ranked = sorted(
            (rank, label.index)
            for label, names in zip(self.labels, self._names, strict=True)
            if (rank := _rank(key, label, names)) is not None
        )
        found = [self.labels[index] for _, index in ranked[:limit]]
        if len(found) < limit and len(key) <= _MAX_FUZZY_LEN:
            found += [label for label in self._resembling(key) if label not in found]
        return found[:limit]

    @cached_property
    def _names(self) -> list[tuple[str, ...]]:
        """Each class's names, normalized, without repetitions ("tree frog, tree-frog")."""
        return [tuple(dict.fromkeys(map(_normalize, label.names))) for label in self.labels]

    @cached_property
    def _by_key(self) -> dict[str, list[ClassLabel]]:
        """The classes of each name and WordNet id."""
        classes: dict[str, list[ClassLabel]] = {}
        for label, names in zip(self.labels, self._names, strict=True):
            for key in {*names, label.wordnet_id or names[0]}:
                classes.setdefault(key, []).append(label)
        return classes

    def _at(self, index: int | None) -> ClassLabel:
        if isinstance(index, bool) or index is None or not 0 <= index < len(self.labels):
            raise UnknownClassError(
                f"a class index must be from 0 to {len(self.labels) - 1}"
                + ("" if index is None else f", got {index}")
            )
        return self.labels[index]

    def _unknown(self, key: str) -> UnknownClassError:
        nearest = self.search(key, _MAX_SUGGESTIONS) if key else []
        hint = (
            f"nearest: {_listed(nearest)}"
            if nearest
            else f"ask by an index from 0 to {len(self.labels) - 1}, a WordNet id or a name"
        )
        return UnknownClassError(f"no class has this name; {hint}", nearest)

    def _resembling(self, key: str) -> list[ClassLabel]:
        """Classes with a name spelt much like `key`, most alike first."""
        matcher = SequenceMatcher(autojunk=False)
        matcher.set_seq2(key)  # difflib caches what it knows of the second sequence
        scores = {
            label.index: score
            for label, names in zip(self.labels, self._names, strict=True)
            if (score := max(_similarity(matcher, name) for name in names)) >= _MIN_SIMILARITY
        }
        order = sorted(scores, key=lambda index: (-scores[index], index))
        return [self.labels[index] for index in order]


def _check_label(label: ClassLabel, position: int) -> None:
    names: Sequence[Any] = label.names  # from a file: not yet known to be strings
    if label.index != position:
        raise ValueError(f"class {label.index} stands at position {position}")
    if not names or not all(isinstance(name, str) and _normalize(name) for name in names):
        raise ValueError(f"class {position} needs names that are not empty, got {list(names)}")
    if label.wordnet_id is not None and not _WORDNET_ID.fullmatch(label.wordnet_id):
        raise ValueError(
            f"class {position}: a WordNet id is n and eight digits, got {label.wordnet_id!r}"
        )


def _rank(key: str, label: ClassLabel, names: tuple[str, ...]) -> int | None:
    if key in (str(label.index), label.wordnet_id, *names):
        return 0
    if any(name.startswith(key) for name in names) or _begins_wordnet_id(key, label):
        return 1
    if any(f" {key} " in f" {name} " for name in names):
        return 2
    if any(f" {key}" in name for name in names):
        return 3
    if any(key in name for name in names):
        return 4
    return None


def _begins_wordnet_id(key: str, label: ClassLabel) -> bool:
    # "n" alone begins every id: it takes a digit to tell an id from a name.
    return len(key) > 1 and label.wordnet_id is not None and label.wordnet_id.startswith(key)


def _similarity(matcher: SequenceMatcher[str], name: str) -> float:
    matcher.set_seq1(name)
    # The bounds are cheap and rule out nearly every name.
    for bound in (matcher.real_quick_ratio, matcher.quick_ratio):
        if bound() < _MIN_SIMILARITY:
            return 0.0
    return matcher.ratio()


def _listed(labels: Sequence[ClassLabel]) -> str:
    return "; ".join(map(str, labels))


@cache
def _read_imagenet() -> ClassLabels:
    _, *rows = IMAGENET_FILE.read_text(encoding="utf-8").splitlines()
    columns = [row.split("\t") for row in rows]
    return ClassLabels(
        tuple(
            ClassLabel(int(index), wordnet_id, tuple(names.split(", ")))
            for index, wordnet_id, names in columns
        )
    )
