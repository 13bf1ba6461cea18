"""Who makes a request, and where they see this server: what every route asks of a request."""

from dataclasses import dataclass

from starlette.requests import Request

from service.jobs import ANYONE
from service.settings import Settings


@dataclass(frozen=True)
class Caller:
    """Whose request it is, and the trace that it is part of; "" for none."""

    owner: str = ANYONE
    traceparent: str = ""


NOBODY = Caller()


def caller_of(request: Request) -> Caller:
    """Return what the surrounding middleware has found out about a request."""
    state = request.state
    return Caller(getattr(state, "owner", ANYONE), getattr(state, "traceparent", ""))


def base_url_of(request: Request, settings: Settings) -> str:
    """Return what links to this server begin with."""
    return (settings.public_url or str(request.base_url)).rstrip("/")
