"""An image that was made here, to be made again: what is asked for, and how the two compare.

Shared by `POST /v1/reproduce` and `bar reproduce`. Everything that can be refused is refused before
anything is drawn: the model's revision, the size, damaged image data. That pixels are compared
and not files lets a PNG pass through tools that compress it better.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from model.zoo import ModelInfo
from service.errors import InvalidRequest
from service.images import Pixels, sheet_size
from service.png_reader import Png, read_png
from service.provenance import PREFIX, Provenance, read_provenance
from service.schemas import GenerationRequest


@dataclass(frozen=True)
class Original:
    """A PNG that came in, and what it says of how it was made."""

    record: Provenance
    _png: Png

    @classmethod
    def read(cls, content: bytes) -> Self:
        """Read a PNG. Raises: InvalidRequest says what is wrong with it."""
        png = read_png(content, PREFIX)
        return cls(read_provenance(png.texts), png)

    def request_to(self, info: ModelInfo) -> GenerationRequest:
        """Return the request that makes the image again, if the model of `info` made it.

        Raises: InvalidRequest if another revision did, or none could have.
        """
        record, image = self.record, self.record.image
        # An API does not know the revision of a model whose files only its workers have.
        if info.revision and info.revision != record.revision:
            raise InvalidRequest(
                f"the image was made by revision {record.revision} of its model, and here is "
                f"revision {info.revision} of {info.name}, which makes other images",
                code="revision_mismatch",
            )
        try:
            image.check_for(info.generator)
        except ValueError as error:
            message = f"the PNG's text chunks do not fit {info.name}: {error}"
            raise InvalidRequest(message, code="invalid_provenance") from None
        return GenerationRequest.model_validate(
            {
                "class_id": image.class_id,
                "seed": image.seed,
                "num_images": record.num_images,
                **image.sampling.to_json(),
                "unmask_schedule": list(image.sampling.unmask_schedule),
            }
        )

    def pixels_of(self, info: ModelInfo) -> Pixels:
        """Return the pixels. Raises: InvalidRequest for a size that the model does not make."""
        return self._png.pixels(*sheet_size(self.record.num_images, info.tokenizer.image_size))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How an image and what was made again differ."""

    num_pixels: int
    differing_pixels: int
    largest_difference: int  # of one colour of one pixel, 0 to 255

    @property
    def matched(self) -> bool:
        return not self.differing_pixels


def compare(original: Pixels, again: Pixels) -> Comparison:
    """Compare two images of the same size, uint8 (h, w, 3)."""
    differences = np.abs(original.astype(np.int16) - again).max(axis=-1)  # (h, w)
    return Comparison(
        num_pixels=differences.size,
        differing_pixels=int(np.count_nonzero(differences)),
        largest_difference=int(differences.max()),
    )
