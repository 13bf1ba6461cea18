"""The application, with an OpenAPI document that says what the service really answers."""

from typing import Any

from fastapi import FastAPI

from service.auth import is_open
from service.schemas import WORD

KEYS: dict[str, dict[str, str]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, made by `bar keys`.",
    },
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same."},
}
REFUSALS = {"401": "No key, one that is not known, or one that has expired", "403": "Forbidden"}
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}


class Application(FastAPI):
    """FastAPI without the 422 answers that it documents: invalid requests are answered with 400;
    and with the keys that its routes need where there are any."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    if "HTTPValidationError" in str(operation["responses"].get("422")):
                        del operation["responses"]["422"]
                    if not is_open(path):
                        _need_key(operation)
            for schema in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(schema, None)
            document["components"]["securitySchemes"] = KEYS
            _tidy(document)
        return super().openapi()


def _tidy(part: Any) -> None:
    """Write the bounds of integers as integers, and leave out those that are none to a client."""
    if isinstance(part, list):
        for member in part:
            _tidy(member)
    if not isinstance(part, dict):
        return
    if part.get("type") == "integer":
        for bound in BOUNDS & part.keys():
            part[bound] = int(part[bound])
        if part.get("exclusiveMaximum") == WORD:
            del part["exclusiveMaximum"]
    for member in part.values():
        _tidy(member)


def _need_key(operation: dict[str, Any]) -> None:
    operation["security"] = [{name: []} for name in KEYS]
    answers = {status: {"description": text, "content": ERROR} for status, text in REFUSALS.items()}
    operation["responses"] = dict(sorted({**operation["responses"], **answers}.items()))
