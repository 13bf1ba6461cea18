"""Facts of submission: a job is complete when it is queued, whatever the request left out."""

from dataclasses import replace
from typing import Any

import pytest

from model.class_labels import ClassLabels
from model.config import PRESETS
from model.zoo import ModelInfo
from service.caller import Caller
from service.errors import InvalidRequest
from service.jobs import Job
from service.schemas import GenerationRequest
from service.settings import Settings
from service.submission import Asking, idempotency_of, make_job
from tests.service.fakes import NUM_STEPS, fake_info

ALONE = Asking()


def submitted(info: ModelInfo | None = None, *, asking: Asking = ALONE, **body: Any) -> Job:
    """Make a job of a request with the default settings."""
    request = GenerationRequest.model_validate(body)
    return make_job(request, info or fake_info(), Settings.load({}, {}), asking)


def named(query: str) -> dict[str, Any]:
    """Return the field, whose name is a keyword of Python."""
    return {"class": query}


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
        submitted(info, **named("crane"))
    assert ("class", "ambiguous_class") == (error.value.param, error.value.code)
    assert 207 == submitted(info, **named("n02099601")).images[0].class_id


def test_only_a_single_image_is_raw() -> None:
    """One image passes, two are refused with both numbers' worth of advice."""
    submitted(asking=Asking(is_single=True), class_id=1)
    with pytest.raises(InvalidRequest, match="2 are asked for"):
        submitted(asking=Asking(is_single=True), class_id=1, num_images=2)


def test_a_job_that_nobody_waits_for_has_all_the_time_there_is() -> None:
    """Its default is the longest time that may be asked for."""
    assert 600.0 == submitted(asking=Asking(is_awaited=False), class_id=1).timeout_s
    assert 7.0 == submitted(asking=Asking(is_awaited=False), class_id=1, timeout_s=7).timeout_s


@pytest.mark.parametrize("asking", [
    Asking(idempotency_key="order-1"), Asking(job_id="order-00001"),
])  # fmt: skip
def test_a_repeatable_request_draws_the_same_seed_again(asking: Asking) -> None:
    """So its images are the same even when nothing remembers the first; another owner's differ."""
    seeds = [submitted(asking=asking, class_id=1).images[0].seed for _ in range(2)]
    assert seeds[0] == seeds[1]
    other = replace(asking, caller=Caller("somebody"))
    assert seeds[0] != submitted(asking=other, class_id=1).images[0].seed


def test_the_same_request_has_the_same_fingerprint() -> None:
    """What was written out and what was left out are the same; another value or format is not. A
    request that nobody can repeat has none."""
    asking = Asking(job_id="order-00001")
    first = submitted(asking=asking, class_id=1).fingerprint
    assert first == submitted(asking=asking, class_id=1, num_images=1).fingerprint
    assert first != submitted(asking=asking, class_id=2).fingerprint
    webp = replace(asking, output_format="webp")
    assert first != submitted(asking=webp, class_id=1).fingerprint
    assert not submitted(class_id=1).fingerprint


def test_an_idempotency_key_is_known_by_its_hash() -> None:
    """The client's text is not kept; the same key has the same hash, whatever it is used for."""
    body, another = (GenerationRequest.model_validate({"class_id": n}) for n in (1, 2))
    key = idempotency_of(body, Asking(idempotency_key="secret"))
    other = idempotency_of(another, Asking(idempotency_key="secret"))
    assert key
    assert other
    assert "secret" not in repr(key)
    assert key.key_hash == other.key_hash
    assert key.fingerprint != other.fingerprint
    assert idempotency_of(body, Asking()) is None


def test_any_number_of_images_is_refused_in_no_time() -> None:
    """Images are counted before they are listed: the largest number costs no memory."""
    with pytest.raises(InvalidRequest, match=f"{4 * (2**31 - 1)} images are asked for"):
        submitted(class_ids=[0, 1, 2, 3], num_images=2**31 - 1)
    with pytest.raises(ValueError, match="less than 2147483648"):
        submitted(class_id=0, num_images=10**4000)


def test_a_schedule_has_a_bounded_length() -> None:
    """A refusal repeats the schedule: so there is a longest one."""
    with pytest.raises(ValueError, match="at most 1024"):
        submitted(class_id=0, unmask_schedule=[1] * 1025)
