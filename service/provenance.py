"""What a PNG says of how it was made: software, model, class, seed and settings.

Written into the text chunks of every PNG that the worker or `bar generate` makes, and read when one
comes to be made again (`reproduction`). The keywords stand here and nowhere else. Nothing is
said about who asked.

A record is accepted only if it is, to the letter, what would be written of it, so that a value has
one spelling. It has no number of a format: a version that needs more will add a keyword, and this
one refuses those that it does not know, because the image may depend on them.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, get_args

from model.config import MAX_SEED, ImageRequest, Order, SamplingConfig
from model.zoo import ModelInfo
from service import __version__
from service.errors import InvalidRequest

PREFIX = "bar:"
REVISION = PREFIX + "revision"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """All that determines an image, or the images of a contact sheet, and what made it."""

    version: str  # of bar-serve
    model: str
    revision: str  # hexadecimal
    class_name: str
    image: ImageRequest  # the first on a contact sheet
    num_images: int = 1  # their seeds follow one another

    @classmethod
    def of(cls, info: ModelInfo, image: ImageRequest, num_images: int = 1) -> Self:
        """Describe an image of `info`'s model, or the contact sheet that begins with it."""
        return cls(
            version=__version__,
            model=info.name,
            revision=info.revision,
            class_name=info.class_labels[image.class_id].name,
            image=image,
            num_images=num_images,
        )

    @property
    def seeds(self) -> list[int]:
        """The seed of each image."""
        return [(self.image.seed + i) % (MAX_SEED + 1) for i in range(self.num_images)]

    def texts(self) -> dict[str, str]:
        """Return the keywords and texts that a PNG carries."""
        sampling = self.image.sampling
        values = {
            "version": self.version,
            "model": self.model,
            "revision": self.revision,
            "class_id": str(self.image.class_id),
            "class_name": self.class_name,
            "seed": ", ".join(map(str, self.seeds)),
            "guidance_scale": repr(float(sampling.guidance_scale)),
            "temperature": repr(float(sampling.temperature)),
            "unmask_schedule": json.dumps(sampling.unmask_schedule),
            "order": sampling.order,
        }
        named = {PREFIX + name: text for name, text in values.items()}
        return {"Software": f"bar-serve {self.version}", **named}


def read_provenance(texts: Mapping[str, str]) -> Provenance:
    """Read the record from the texts of a PNG whose keywords begin with `PREFIX`.

    Raises: InvalidRequest names the text chunk that is missing, unknown or wrong.
    """
    _check_keywords(texts)
    values = {name: _value(name, texts[PREFIX + name]) for name in _READERS}
    seed, *others = values.pop("seed")
    try:
        sampling = SamplingConfig(**{name: values.pop(name) for name in _SETTINGS})
        image = ImageRequest(class_id=values.pop("class_id"), seed=seed, sampling=sampling)
    except ValueError as error:
        raise _refusal(f"the PNG's text chunks say what cannot be: {error}") from None
    record = Provenance(**values, image=image, num_images=1 + len(others))
    written = record.texts()
    for keyword, text in texts.items():
        if text != written[keyword]:
            raise _wrong(keyword)
    return record


def _check_keywords(texts: Mapping[str, str]) -> None:
    known = {PREFIX + name for name in _READERS}
    missing = sorted(known - set(texts))
    if len(missing) == len(known):
        raise _refusal(
            f"this PNG was not made here, or its text chunks were removed: it has no text chunk "
            f"{PREFIX}model, and none of the others that say how to make the image"
        )
    if missing:
        raise _refusal(f"the PNG has lost text chunks: {', '.join(missing)}")
    if set(texts) - known:
        raise _refusal(
            f"a text chunk of the PNG has a keyword that bar-serve {__version__} does not know: a "
            "later version made the image"
        )


def _value(name: str, text: str) -> Any:
    try:
        return _READERS[name](text)
    except ValueError:
        raise _wrong(PREFIX + name) from None


def _matching(pattern: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return read


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(", "))


_SETTINGS = ("guidance_scale", "temperature", "unmask_schedule", "order")
# Each accepts what is written, and more: what differs from what would be written is refused later.
_READERS: dict[str, Callable[[str], Any]] = {
    "version": _matching(r"[0-9A-Za-z.+]{1,40}"),
    "model": str,
    "revision": _matching(r"[0-9a-f]{1,64}"),
    "class_id": int,
    "class_name": str,
    "seed": _integers,
    "guidance_scale": float,
    "temperature": float,
    "unmask_schedule": lambda text: _integers(text.strip("[]")),
    "order": _matching("|".join(get_args(Order))),
}


def _wrong(keyword: str) -> InvalidRequest:
    return _refusal(f"the PNG's text chunk {keyword} holds what bar-serve never writes there")


def _refusal(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_provenance")
