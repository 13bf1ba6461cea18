"""Facts of submission: a job is complete when it is queued, whatever the request left out."""

from typing import Any

import pytest

from model.class_labels import ClassLabels
from model.config import PRESETS
from model.zoo import ModelInfo
from service.errors import InvalidRequest
from service.jobs import Job
from service.schemas import GenerationRequest
from service.settings import Settings
from service.submission import check_is_single, make_job
from tests.service.fakes import NUM_STEPS, fake_info


def submitted(info: ModelInfo | None = None, **body: Any) -> Job:
    """Make a job of a request with the default settings."""
    request = GenerationRequest.model_validate(body)
    return make_job(request, info or fake_info(), Settings.load({}, {}), "png")


def test_what_is_left_out_comes_from_model_and_settings() -> None:
    """Sampling is the model's default, the time limit the server's, one image is made."""
    job = submitted(class_id=2)
    (image,) = job.images
    assert (2, fake_info().sampling) == (image.class_id, image.sampling)
    assert (60.0, NUM_STEPS, NUM_STEPS) == (job.timeout_s, job.num_steps, job.cost)


def test_each_request_becomes_a_job_of_its_own() -> None:
    """The same request twice gives two ids, and two seeds where none was given."""
    jobs = [submitted(class_id=2) for _ in range(2)]
    assert jobs[0].id != jobs[1].id
    assert jobs[0].images[0].seed != jobs[1].images[0].seed


def test_an_ambiguous_name_is_refused_with_all_that_it_may_mean() -> None:
    """ImageNet has two cranes: the machine and the bird."""
    preset = PRESETS["bar-b"]
    info = ModelInfo(
        name="bar-b",
        revision="",
        generator=preset.generator,
        tokenizer=preset.tokenizer,
        sampling=preset.sampling,
        class_labels=ClassLabels.imagenet(),
        directory=None,
    )
    with pytest.raises(InvalidRequest, match=r"134 .*517 ") as error:
        submitted(info, **{"class": "crane"})
    assert ("class", "ambiguous_class") == (error.value.param, error.value.code)
    assert 207 == submitted(info, **{"class": "n02099601"}).images[0].class_id


def test_only_a_single_image_is_raw() -> None:
    """One image passes, two are refused with both numbers' worth of advice."""
    check_is_single(submitted(class_id=1))
    with pytest.raises(InvalidRequest, match="2 are asked for"):
        check_is_single(submitted(class_id=1, num_images=2))
