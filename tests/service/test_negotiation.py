"""Facts of content negotiation: JSON unless an image type is preferred."""

import pytest

from service.errors import InvalidRequest, NotAcceptable
from service.jobs import OutputFormat
from service.negotiation import image_format_accepted


@pytest.mark.parametrize(("accept", "expected"), [
    (None, None),
    ("", None),
    ("*/*", None),
    ("application/json", None),
    ("application/*", None),
    ("image/png", "png"),
    ("IMAGE/JPEG", "jpeg"),
    ("image/webp;q=0.9, application/json;q=0.8", "webp"),
    ("image/png;q=0.5, application/json", None),
    ("image/png, */*;q=0.1", "png"),
    ("image/*", "png"),
    ("image/*;q=0.5, image/webp", "webp"),
    ("image/png;q=0, image/*", "jpeg"),
    ("text/html, image/avif, */*;q=0.8", None),
    ("image/png;q=nonsense", "png"),
])  # fmt: skip
def test_the_most_wanted_type_is_chosen(accept: str | None, expected: str | None) -> None:
    """Qualities decide, the more specific range first; JSON wins a draw."""
    assert expected == image_format_accepted(accept, None)


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "image/png;q=0", "nonsense"])
def test_nothing_that_there_is(accept: str) -> None:
    """A header that allows none of our types is refused."""
    with pytest.raises(NotAcceptable, match="application/json, image/png"):
        image_format_accepted(accept, None)


@pytest.mark.parametrize(("accept", "preferred", "expected"), [
    ("image/*", "webp", "webp"),
    ("image/png, image/jpeg", "jpeg", "jpeg"),
    ("*/*", "jpeg", None),
])  # fmt: skip
def test_output_format_decides_among_equals(
    accept: str, preferred: OutputFormat, expected: str | None
) -> None:
    """The body's output_format chooses among image types that are accepted alike."""
    assert expected == image_format_accepted(accept, preferred)


def test_a_contradiction_is_refused() -> None:
    """Accept and output_format may not ask for different formats."""
    with pytest.raises(InvalidRequest, match=r"webp.*image/png"):
        image_format_accepted("image/png", "webp")
