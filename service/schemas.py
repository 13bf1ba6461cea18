"""The wire format of the API: what a request may hold, what an answer holds.

Types and bounds that hold for every model stand here, with their words for the OpenAPI document;
what depends on the model or on settings is checked in `submission`. Requests are read strictly:
no unknown field, no text or boolean for a number, no NaN.
"""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from model.config import MAX_GUIDANCE_SCALE, MAX_SEED, MAX_TEMPERATURE, Order
from service.jobs import OutputFormat, Priority, ResponseFormat

MAX_METADATA_ENTRIES = 16
MAX_PARTIAL_IMAGES = 3
MAX_ROUNDS = 1024  # of a schedule; the published models reveal at most 256 bits in one step
WORD = 2**31  # that no number reaches whose bound depends on the model or on settings

MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Bits = Annotated[int, Field(ge=1, lt=WORD)]
Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
ClassIndex = Annotated[int, Field(ge=0, lt=WORD)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
GuidanceScale = Annotated[float, Field(ge=1, le=MAX_GUIDANCE_SCALE)]
Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)]
UnmaskSchedule = Annotated[list[Bits], Field(min_length=1, max_length=MAX_ROUNDS)]
Compression = Annotated[int, Field(ge=0, le=100)]
PartialImages = Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES)]


class GenerationRequest(BaseModel):
    """Images of one class (`class_id` or `class`) or of several (`class_ids`)."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"class": "7", "seed": 1, "num_images": 2}]},
    )

    model: str | None = Field(None, description="Id of a served model; the only one if left out.")
    class_id: ClassIndex | None = Field(None, description="Index of the class.")
    class_name: ClassIndex | str | None = Field(
        None, alias="class", description="Index, WordNet id or name of the class."
    )
    class_ids: list[ClassIndex] | None = Field(
        None, min_length=1, description="Indices of several classes; num_images of each are made."
    )
    num_images: int = Field(1, ge=1, lt=WORD, description="Images, of each class.")
    seed: Seed | None = Field(
        None,
        description="Image i has seed (seed + i) mod 2^32. Drawn and returned if left out.",
    )
    guidance_scale: GuidanceScale | None = Field(
        None, description="The model's default if left out."
    )
    temperature: Temperature | None = Field(
        None,
        validation_alias=AliasChoices("temperature", "randomize_temperature"),
        description="The model's default if left out. Also taken as `randomize_temperature`.",
    )
    unmask_schedule: UnmaskSchedule | None = Field(
        None,
        validation_alias=AliasChoices("unmask_schedule", "tokens_allocation"),
        description="Bits revealed in each round: not decreasing, summing to the model's bits per "
        "token. The model's default if left out. Also taken as `tokens_allocation`.",
    )
    order: Order | None = Field(
        None, description="Order in which the tokens are drawn. The model's default if left out."
    )
    output_format: OutputFormat | None = Field(
        None, description="Image format; png if left out, or what an image Accept header says."
    )
    response_format: ResponseFormat = Field(
        "b64_json", description="A JSON answer holds the images, or says where they are."
    )
    output_compression: Compression | None = Field(
        None, description="Quality of jpeg and webp, 0 to 100; 92 if left out. png is lossless."
    )
    partial_images: PartialImages = Field(
        0,
        description="Previews of each image, evenly spaced in its progress; they are shown as "
        "server-sent events.",
    )
    priority: Priority = Field(
        "normal", description="A lead over other jobs in the queue, which their age overcomes."
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        description="Seconds after which the job is stopped and answered with 504. Left out, it is "
        "this server's default, or its most for a job that nobody waits for.",
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict,
        max_length=MAX_METADATA_ENTRIES,
        description="Texts of the caller's own, returned with the answer.",
    )

    @model_validator(mode="after")
    def _has_one_class(self) -> "GenerationRequest":
        given = self.class_fields
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of class_id, class and class_ids, got {len(given)} of them"
            )
        return self

    @property
    def class_fields(self) -> dict[str, int | str | list[int]]:
        """Those of the three ways to name the class that were used."""
        ways = {"class_id": self.class_id, "class": self.class_name, "class_ids": self.class_ids}
        return {name: value for name, value in ways.items() if value is not None}


class GeneratedImage(BaseModel):
    """One image of an answer; its content is there once the job has succeeded."""

    index: int
    class_id: int
    class_name: str
    seed: int = Field(description="The seed of this image: alone, with it, it comes out the same.")
    b64_json: str | None = Field(None, description="The encoded image in base64.")
    url: str | None = Field(None, description="Where the encoded image is.")
    sha256: str | None = Field(None, description="Of the encoded image, in hexadecimal.")


class Timings(BaseModel):
    """Seconds in each stage; encode_s is summed over images that are encoded side by side."""

    queue_s: float
    generation_s: float
    decode_s: float
    encode_s: float
    total_s: float


class Links(BaseModel):
    """Where a job can be asked for, followed and stopped."""

    self: str
    events: str
    cancel: str


class Generation(BaseModel):
    """A job: how it is, and its images once it has succeeded."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    object: Literal["image.generation"] = "image.generation"
    status: Status
    created: int = Field(description="Unix time of the request.")
    model: str
    model_revision: str
    size: str = Field(description="Width x height in pixels.")
    output_format: OutputFormat
    progress: float = Field(description="Share of all its tokens that are drawn, 0 to 1; exact.")
    queue_position: int | None = Field(description="1 is the next; null once it runs.")
    eta_s: float | None = Field(description="Seconds left, from measured steps.")
    data: list[GeneratedImage]
    timings: Timings | None = Field(description="null until it has succeeded.")
    gpu_seconds: float | None = Field(
        description="The job's share of the device's time; of the CPU's where that is the device."
    )
    error: "ErrorDetail | None" = Field(description="Why there are no images.")
    links: Links
    metadata: dict[str, str]
    warnings: list[str]


class GenerationList(BaseModel):
    """Jobs, the newest first, without their images' contents."""

    object: Literal["list"] = "list"
    data: list[Generation]
    has_more: bool = Field(description="Older ones follow `after` the last.")


class Reproduction(BaseModel):
    """How an image that came in and the one that was made again differ."""

    matched: bool = Field(description="Every pixel is the same.")
    differing_pixels: int
    largest_difference: int = Field(description="Of one colour of one pixel, 0 to 255.")
    revision_matches: bool = Field(
        description="False if a worker made the image again that had another revision."
    )


class ReproducedGeneration(Generation):
    """An image that was made again, and how it compares."""

    reproduction: Reproduction


class SamplingDefaults(BaseModel):
    """What a request gets where it leaves a field out."""

    guidance_scale: float
    temperature: float
    unmask_schedule: list[int]
    order: Order


class ModelLimits(BaseModel):
    """Bounds of a request to this server."""

    max_images: int
    max_timeout_s: float


class Numerics(BaseModel):
    """What the images of a model are computed in, and how far they are determined."""

    precision: str = Field(description="float32, bfloat16 or fp8.")
    is_exact: bool = Field(
        description="False for fp8, which rounds more than the model allows for."
    )
    determinism: Literal["bitwise", "numeric"] = Field(
        description="bitwise: a request gives the same image alone and in company; numeric: the "
        "same up to rounding, which may change an image."
    )


class ModelCard(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time at which this server started.")
    owned_by: str = "bar-serve"
    revision: str
    image_size: int
    num_classes: int
    num_steps: int = Field(description="Steps of one image, always the same.")
    bits_per_token: int
    max_rounds: int = Field(description="Of a schedule; 1 where a token is drawn at once.")
    numerics: Numerics | None = Field(description="null while the model is loading.")
    defaults: SamplingDefaults
    limits: ModelLimits


class ModelList(BaseModel):
    """The served models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ClassEntry(BaseModel):
    """A class of a model."""

    class_id: int
    wordnet_id: str | None
    name: str
    names: list[str]


class ClassList(BaseModel):
    """Classes of a model, best match first where they were searched for."""

    object: Literal["list"] = "list"
    data: list[ClassEntry]


class Health(BaseModel):
    """The answer of a probe."""

    status: Literal["live", "started", "ready"]


class Version(BaseModel):
    """The software and the model that it serves."""

    model_config = ConfigDict(protected_namespaces=())

    name: Literal["bar-serve"] = "bar-serve"
    version: str
    model: str
    model_revision: str


class ErrorDetail(BaseModel):
    """What went wrong, for a person (`message`) and for a program (the rest)."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe error answers for the OpenAPI document."""
    return {status: {"model": ErrorBody} for status in statuses}
