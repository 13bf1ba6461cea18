"""From what validation says of a wrong request to what we say of it.

Used for request bodies, query parameters and the command line alike. A message names the field
and, for a number, which came; text that the client sent is not repeated.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from service.errors import InvalidRequest

MAX_NAME_LEN = 64
MAX_SHOWN = 1e12  # digits beyond tell a reader nothing


def explain(
    problem: Any, location: Sequence[int | str], body: type[BaseModel] | None = None
) -> InvalidRequest:
    """Turn one of pydantic's errors, found at `location` in a request, into a refusal; `body` is
    what its body should have been."""
    kind, reason = problem["type"], problem["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return InvalidRequest("the body is not valid JSON", code="invalid_json")
    if not location:
        return _explain_whole(kind, reason)
    param = str(location[0])[:MAX_NAME_LEN]
    if kind == "extra_forbidden":
        names = [field.alias or name for name, field in body.model_fields.items()] if body else []
        message = f"there is no such field; the fields are {', '.join(names)}"
        return InvalidRequest(message, param=param, code="unknown_parameter")
    if param == "class":
        reason = "should be an index, a WordNet id or a name"
    reason = reason.removeprefix("Input ")
    return InvalidRequest(f"{param} {reason}{_got(problem.get('input'))}", param=param)


def _explain_whole(kind: str, reason: str) -> InvalidRequest:
    if kind == "value_error":  # the only rule on several fields: one way of naming the class
        return InvalidRequest(reason, param="class_id")
    return InvalidRequest("the body must be a JSON object", code="invalid_json")


def _got(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f", got {value}" if is_number and not abs(value) > MAX_SHOWN else ""
