"""A claimed job in its worker: what has come of it so far, and the result that it becomes."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from service.images import Pixels, encode
from service.jobs import Claim, Job, JobResult, JobTimings
from service.tracing import JobTrace


@dataclass(frozen=True)
class Encoded:
    """One image as bytes."""

    content: bytes
    pixels_at: float  # when the pixels had arrived
    seconds: float


def encode_image(pixels: Callable[[], Pixels], job: Job, texts: Mapping[str, str]) -> Encoded:
    """Wait for an image's pixels and encode them as the job asks."""
    image, started = pixels(), time.monotonic()
    content = encode(image, job.output_format, texts, job.output_compression)
    return Encoded(content, pixels_at=started, seconds=time.monotonic() - started)


@dataclass
class RunningJob:
    """A claimed job that has not ended. Times are those of the monotonic clock."""

    claim: Claim
    trace: JobTrace
    claimed_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0  # its first image entered a slot
    full_at: float = 0.0  # the newest image
    device_s: float = 0.0  # its share of the device's time
    images: dict[int, Encoded | None] = field(default_factory=dict)  # None: it failed
    has_partial: bool = False
    # Partial images and the end are told one after the other, in the order in which they came.
    telling: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def tokens_s(self) -> float:
        """Seconds from the first image's slot to the last image's last token."""
        return self.full_at - self.started_at

    @property
    def age_s(self) -> float:
        """Seconds since the job was admitted."""
        return self.claim.queue_s + time.monotonic() - self.claimed_at

    def trace_stages(self, stored_from: float, stored_to: float) -> None:
        """Tell the trace when each stage was. Only when all images were delivered."""
        images = [image for image in self.images.values() if image is not None]
        pixels_at = [image.pixels_at for image in images]
        encoded_at = max(image.pixels_at + image.seconds for image in images)
        self.trace.note_stage("tokens", self.started_at, self.full_at)
        self.trace.note_stage("decode", self.full_at, max(pixels_at))
        self.trace.note_stage("encode", min(pixels_at), encoded_at)
        self.trace.note_stage("store", stored_from, stored_to)

    def result(self) -> JobResult | None:
        """Put the images together; None if one failed. Only when all were delivered."""
        images = [image for _, image in sorted(self.images.items()) if image is not None]
        if len(images) < len(self.images):
            return None
        timings = JobTimings(
            queue_s=self.claim.queue_s,
            generation_s=self.full_at - self.claimed_at,
            decode_s=max(image.pixels_at for image in images) - self.full_at,
            encode_s=sum(image.seconds for image in images),
            device_s=self.device_s,
        )
        return JobResult(images=tuple(image.content for image in images), timings=timings)
