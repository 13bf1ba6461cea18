"""The application, with an OpenAPI document that says what the service really answers."""

from typing import Any

from fastapi import FastAPI


class Application(FastAPI):
    """FastAPI without the 422 answers that it documents: invalid requests are answered with 400."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for schema in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(schema, None)
        return super().openapi()
