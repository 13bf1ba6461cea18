"""The wire format of the OpenAI-compatible route: `POST /v1/images/generations`.

What OpenAI's clients send and read, and beside it, in `extra_body`, what only this generator can be
asked for. Bounds that both ways in share come from `schemas`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.config import Order
from service.jobs import OutputFormat, Priority, ResponseFormat
from service.schemas import (
    ClassIndex,
    Compression,
    GuidanceScale,
    PartialImages,
    Seed,
    Temperature,
    UnmaskSchedule,
)

MAX_PROMPT_LEN = 32000  # what OpenAI allows; no class has so long a name
Ignored = Annotated[str | None, Field(description="Accepted, without effect.")]


class ImagesRequest(BaseModel):
    """Images as OpenAI's clients ask for them; the prompt names a class."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"prompt": "7", "n": 2}]},
    )

    prompt: str = Field(
        max_length=MAX_PROMPT_LEN, description="Index, WordNet id or name of a class."
    )
    model: str | None = Field(None, description="Id of a served model; the first if left out.")
    n: int = Field(1, ge=1, le=10, description="Number of images.")
    size: str = Field("auto", max_length=32, description="The model's own, or auto.")
    response_format: ResponseFormat = Field("b64_json", description="Images, or where they are.")
    output_format: OutputFormat = Field("png", description="Image format.")
    output_compression: Compression | None = Field(None, description="Quality of jpeg and webp.")
    stream: bool = Field(False, description="Answer with server-sent events.")
    partial_images: PartialImages = Field(0, description="Previews of each image in a stream.")
    background: Literal["auto", "opaque", "transparent"] = Field(
        "auto", description="Images are opaque; transparent is refused."
    )
    quality: Ignored = None
    style: Ignored = None
    moderation: Ignored = None
    user: Ignored = None
    class_id: ClassIndex | None = Field(
        None, description="Index of the class; the prompt then is free text."
    )
    seed: Seed | None = Field(None, description="Image i has seed (seed + i) mod 2^32.")
    guidance_scale: GuidanceScale | None = Field(None, description="The model's default.")
    temperature: Temperature | None = Field(None, description="The model's default.")
    unmask_schedule: UnmaskSchedule | None = Field(None, description="The model's default.")
    order: Order | None = Field(None, description="The model's default.")
    priority: Priority = Field("normal", description="A lead over other jobs in the queue.")
    timeout_s: float | None = Field(None, gt=0, description="Seconds that the images may take.")

    @property
    def ignored(self) -> list[str]:
        """The fields that were given and have no effect."""
        names = [n for n in ("quality", "style", "moderation", "user") if getattr(self, n)]
        if self.partial_images and not self.stream:
            names.append("partial_images")
        return names


class TokensDetails(BaseModel):
    """Tokens by kind; a class is one token of neither text nor image."""

    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Tokens that went in, one class for each image, and tokens that were drawn."""

    input_tokens: int
    input_tokens_details: TokensDetails
    output_tokens: int
    output_tokens_details: TokensDetails
    total_tokens: int

    @classmethod
    def of(cls, num_images: int, num_steps: int) -> "Usage":
        """Count the tokens of so many images."""
        drawn = num_images * num_steps
        return cls(
            input_tokens=num_images,
            input_tokens_details=TokensDetails(image_tokens=0, text_tokens=0),
            output_tokens=drawn,
            output_tokens_details=TokensDetails(image_tokens=drawn, text_tokens=0),
            total_tokens=num_images + drawn,
        )


class ImageData(BaseModel):
    """One image."""

    b64_json: str | None
    url: str | None
    revised_prompt: str = Field(description="Name of the class.")
    class_id: int
    seed: int


class ImagesResponse(BaseModel):
    """The images that were asked for."""

    created: int
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    quality: Literal["high"] = "high"
    size: str
    data: list[ImageData]
    usage: Usage
    id: str = Field(description="Of the generation.")
    model: str
    warnings: list[str]


class ImageEvent(BaseModel):
    """What every event of a stream says of its image."""

    b64_json: str
    background: Literal["opaque"] = "opaque"
    created_at: int
    output_format: OutputFormat
    quality: Literal["high"] = "high"
    size: str
    image_index: int = Field(description="Which of n images.")


class PartialImageEvent(ImageEvent):
    """What is drawn of an image."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int


class CompletedEvent(ImageEvent):
    """A finished image; with n images there are n of these."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    usage: Usage
    seed: int
