"""Facts of content negotiation: JSON unless something else is preferred."""

import pytest

from service.errors import InvalidRequest, NotAcceptable
from service.jobs import OutputFormat
from service.negotiation import choose_answer, raw_format


@pytest.mark.parametrize(("accept", "expected"), [
    (None, "json"),
    ("", "json"),
    ("*/*", "json"),
    ("application/json", "json"),
    ("application/*", "json"),
    ("image/png", "png"),
    ("IMAGE/JPEG", "jpeg"),
    ("image/webp;q=0.9, application/json;q=0.8", "webp"),
    ("image/png;q=0.5, application/json", "json"),
    ("image/png, */*;q=0.1", "png"),
    ("image/*", "png"),
    ("image/*;q=0.5, image/webp", "webp"),
    ("image/png;q=0, image/*", "jpeg"),
    ("text/html, image/avif, */*;q=0.8", "json"),
    ("image/png;q=nonsense", "png"),
    ("text/event-stream", "events"),
    ("text/*", "events"),
    ("image/png;q=0.5, text/event-stream", "events"),
])  # fmt: skip
def test_the_most_wanted_type_is_chosen(accept: str | None, expected: str) -> None:
    """Qualities decide, the more specific range first; JSON wins a draw."""
    assert expected == choose_answer(accept, None)


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "image/png;q=0", "nonsense"])
def test_nothing_that_there_is(accept: str) -> None:
    """A header that allows none of our types is refused."""
    with pytest.raises(NotAcceptable, match="application/json, image/png"):
        choose_answer(accept, None)


@pytest.mark.parametrize(("accept", "preferred", "expected"), [
    ("image/*", "webp", "webp"),
    ("image/png, image/jpeg", "jpeg", "jpeg"),
    ("*/*", "jpeg", "json"),
    ("text/event-stream", "jpeg", "events"),
])  # fmt: skip
def test_output_format_decides_among_equals(
    accept: str, preferred: OutputFormat, expected: str
) -> None:
    """The body's output_format chooses among image types that are accepted alike."""
    assert expected == choose_answer(accept, preferred)


def test_a_contradiction_is_refused() -> None:
    """Accept and output_format may not ask for different formats."""
    with pytest.raises(InvalidRequest, match=r"webp.*image/png"):
        choose_answer("image/png", "webp")


def test_only_images_are_raw() -> None:
    """JSON and events carry images in base64, so that they have no format of their own."""
    assert [None, "webp", None] == [raw_format("json"), raw_format("webp"), raw_format("events")]
