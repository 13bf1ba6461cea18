"""Facts of the Prefer header: what is understood, and that the rest is ignored."""

import pytest

from service.preferences import Preference, read_preference


@pytest.mark.parametrize(("header", "expected"), [
    (None, Preference()),
    ("", Preference()),
    ("respond-async", Preference(0.0, "respond-async")),
    ("Respond-Async", Preference(0.0, "respond-async")),
    ("wait=10", Preference(10.0, "wait=10")),
    ('wait="10"', Preference(10.0, "wait=10")),
    ("respond-async, wait=10; foo=1", Preference(10.0, "respond-async, wait=10")),
    ("return=minimal, respond-async", Preference(0.0, "respond-async")),
    ("wait=soon", Preference()),
    ("wait=-1", Preference()),
    ("wait=²", Preference()),
    ("wait=99999999999", Preference()),
    (",;=,", Preference()),
    ("wait=5, wait=10", Preference(5.0, "wait=5")),  # the first counts
])  # fmt: skip
def test_only_waiting_is_understood(header: str | None, expected: Preference) -> None:
    """`respond-async` and a whole number of seconds; anything else has no effect."""
    assert expected == read_preference(header)


def test_a_preference_says_whether_the_client_waits() -> None:
    """Any bound on the wait makes the request asynchronous."""
    assert read_preference("wait=1").is_async
    assert not read_preference(None).is_async
