"""Facts of the error tree: drawn in full, one status for each, one envelope."""

import re

from service import errors
from service.errors import STATUSES, BarError, QueueFull, ServiceError


def classes_below(root: type[BarError]) -> list[type[BarError]]:
    """Return all classes that descend from `root`, in order of definition."""
    return [kind for child in root.__subclasses__() for kind in (child, *classes_below(child))]


def test_the_drawn_tree_is_the_tree() -> None:
    """The docstring names every class, at its depth and with its status."""
    assert errors.__doc__ is not None
    drawn = re.findall(r"^ {4}([│ ├└─]*)([A-Z]\w+) +(\d{3})?", errors.__doc__, re.MULTILINE)
    expected = [(0, "BarError", "")]
    for kind in classes_below(BarError):
        status = STATUSES.get(kind, "") if issubclass(kind, ServiceError) else ""
        expected.append((len(kind.__mro__) - len(BarError.__mro__), kind.__name__, str(status)))
    assert expected == [(len(prefix) // 4, name, status) for prefix, name, status in drawn]


def test_every_answer_has_a_status() -> None:
    """No error that reaches a client lacks one, and none is 409, which clients retry."""
    assert set(ServiceError.__subclasses__()) == set(STATUSES)
    assert 409 not in STATUSES.values()


def test_the_envelope_is_that_of_openai() -> None:
    """Message, type, param and code, and nothing else."""
    error = QueueFull("full", param="class", retry_after_s=2)
    assert {
        "error": {
            "message": "full",
            "type": "rate_limit_error",
            "param": "class",
            "code": "queue_full",
        }
    } == error.envelope()
