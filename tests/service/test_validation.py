"""Facts of validation: whatever arrives becomes a job or a refusal, never another error."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.errors import InvalidRequest, NotFound, ServiceError
from service.schemas import GenerationRequest
from service.settings import Settings
from service.submission import Asking, make_job
from service.validation import explain
from tests.service.fakes import fake_info

NAMES = sorted(
    {field.alias or name for name, field in GenerationRequest.model_fields.items()}
    | {"tokens_allocation", "randomize_temperature", "class_name", "priority"}
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 20)
    | st.floats()
    | st.text(max_size=80)
    | st.sampled_from(["seven", "png", "b64_json", "raster", "digits"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=10), VALUES, max_size=6))
def test_any_object_is_a_job_or_a_refusal(body: dict[str, Any]) -> None:
    """Every JSON object is either submitted within the bounds or refused in short words."""
    settings = Settings.load({}, {})
    refusal: ServiceError | None = None
    try:
        job = make_job(GenerationRequest.model_validate(body), fake_info(), settings, Asking())
    except ValidationError as error:
        problem = error.errors()[0]
        refusal = explain(problem, problem["loc"])
    except (InvalidRequest, NotFound) as error:
        refusal = error
        assert error.param in NAMES
    if refusal:
        assert refusal.status in (400, 404)
        assert 0 < len(str(refusal)) < 300
        return
    assert 1 <= len(job.images) <= settings.max_images
    assert 0 < job.timeout_s <= settings.max_timeout_s
    for request in job.images:
        request.check_for(fake_info().generator)


def test_the_alias_for_python_is_not_a_field() -> None:
    """The wire has `class`; the attribute's name is refused like any unknown field."""
    with pytest.raises(ValidationError) as caught:
        GenerationRequest.model_validate({"class_name": "seven"})
    (problem,) = caught.value.errors()
    assert ("extra_forbidden", ("class_name",)) == (problem["type"], problem["loc"])
