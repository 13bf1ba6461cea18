"""`bar evaluate model`: images of a model, drawn or from a file, beside a reference.

Images are drawn by the engine that serves, looked at, and forgotten. Several processes draw batches
in turn. Whoever wants the images themselves, or to go on after an interruption, draws them with
`bar sample` and gives the file.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.zoo import ModelInfo
from training.errors import TrainingError
from training.evaluation import Lab
from training.evaluation_figures import (
    compare,
    differs_from_preset,
    names_of,
    notes_on,
    published_figures,
)
from training.evaluation_reference import Reference
from training.evaluation_report import Report, protocol_of
from training.image_npz import NpzImages
from training.image_statistics import ImageStatistics
from training.pictures import Pixels
from training.sampling_run import Sampler, Series


@dataclass(frozen=True)
class Drawn:
    """Images that were drawn and looked at, and how long the drawing took."""

    seen: ImageStatistics
    seconds: float  # of this process


def draw_and_look(sampler: Sampler, series: Series, lab: Lab, name: str) -> Drawn:
    """Draw images, and return what is kept of them, over all processes."""
    statistics = ImageStatistics(series.num_images, num_kept=series.num_images)
    names = [label.name for label in sampler.info.class_labels]
    seconds = 0.0

    def timed() -> Iterator[tuple[int, Pixels]]:
        nonlocal seconds
        batches = sampler.draw(series, rank=lab.processes.rank, num_ranks=lab.processes.count)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)  # ends with pixels in memory: nothing is pending
            seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    seen = lab.measure(name, timed(), statistics, lab.labels(series.labels, names))
    return Drawn(seen, seconds)


def evaluate_model(sampler: Sampler, series: Series, reference: Reference, lab: Lab) -> Report:
    """Draw images and return their figures."""
    seen = draw_and_look(sampler, series, lab, sampler.info.name).seen
    protocol = {"images": seen.count, **sampler.describe(series)}
    notes = []
    if differs_from_preset(sampler.info, sampler.sampling):
        notes.append("drawn with other settings than the preset's, of which figures are published")
    return report(seen, reference, lab, sampler.info, protocol, notes)


def evaluate_samples(
    images: NpzImages, info: ModelInfo | None, reference: Reference, lab: Lab
) -> Report:
    """Return the figures of images in a file.

    Raises TrainingError if the file tells that they are of another model than `info`.
    """
    told = images.settings
    if info is not None and told and told["revision"] != info.revision:
        raise TrainingError(
            f"{images.path} was drawn by {told['model']} (revision {told['revision']}), not by "
            f"{info.name} ({info.revision})"
        )
    statistics = ImageStatistics(len(images), num_kept=len(images))
    names = [label.name for label in info.class_labels] if info is not None else []
    labels = lab.labels(images.class_ids, names) if names else None
    processes = lab.processes
    batches = images.batches(lab.batch_size, processes.rank, processes.count)
    seen = lab.measure(images.name, batches, statistics, labels)
    protocol = {"images": seen.count, "file": images.name, "file_hash": images.digest}
    told.pop("num_images", None)
    notes = [] if told else [f"{images.name} does not tell how its images were drawn"]
    return report(seen, reference, lab, info, {**protocol, **told}, notes)


def report(
    seen: ImageStatistics,
    reference: Reference,
    lab: Lab,
    info: ModelInfo | None,
    protocol: dict[str, Any],
    notes: list[str],
) -> Report:
    """Put figures, protocol and what is published together."""
    figures = compare(seen, reference, lab.device)
    published = published_figures(info, lab.extractor) if info is not None else None
    name = info.name if info is not None else Path(protocol["file"]).stem
    return Report(
        title=f"{name} beside {reference.name}",
        figures=figures.to_json(),
        names=names_of(lab.extractor, seen.count),
        protocol={**protocol, **reference.describe(), **protocol_of(lab)},
        notes=[*notes, *notes_on(seen, reference, lab.extractor)],
        published={} if published is None else published.to_json(),
    )
