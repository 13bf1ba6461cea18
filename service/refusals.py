"""Every way in which a request can fail, answered in one envelope.

Installed into the application by `api`: errors of the service itself, of the framework's routing
(404, 405) and validation, and those that nobody expected.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from service.errors import (
    GenerationFailed,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    UnsupportedMediaType,
)
from service.middleware import error_response
from service.validation import explain

JSON_TYPE = "application/json"


class JsonRoute(APIRoute):
    """A route that reads a body only if it is declared as JSON, and answers HEAD as GET, whose
    content the server then leaves out."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Say whether the route is meant by a request."""
        return super().matches(_as_get(scope))

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await super().handle(_as_get(scope), receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the route's handler, behind a check of the content type if it has a body."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def handle_json(request: Request) -> Response:
            declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if declared != JSON_TYPE:
                raise UnsupportedMediaType(
                    f"the body must be JSON, with the header Content-Type: {JSON_TYPE}"
                )
            return await handler(request)

        return handle_json


def _as_get(scope: Scope) -> Scope:
    return {**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope


def install(app: FastAPI) -> None:
    """Make `app` answer every failure in the envelope."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_framework_error)
    app.add_exception_handler(Exception, _on_unexpected_error)


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    request.state.error_code = error.code
    return error_response(error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    _source, *location = problem["loc"]  # body or query, then where in it
    field = request.scope["route"].body_field
    body = field.field_info.annotation if field else None
    return error_response(explain(problem, location, body))


async def _on_framework_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = error_response(_translate(error.status_code))
    response.headers.update(error.headers or {})
    return response


def _translate(status: int) -> ServiceError:
    if status == 404:
        return NotFound("there is no such route; GET /openapi.json lists them")
    if status == 405:
        return MethodNotAllowed("this route has other methods; the Allow header lists them")
    return InvalidRequest("the body is not valid JSON", code="invalid_json")


async def _on_unexpected_error(_: Request, _error: Exception) -> Response:
    # The framework hands the error on, and the server logs it with its traceback.
    message = "an unexpected error, which is logged"
    return error_response(GenerationFailed(message, code="internal_error"))
