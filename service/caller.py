"""Who makes a request, and where they see this server: what every route asks of a request."""

from dataclasses import dataclass

from starlette.requests import Request

from service.jobs import ANYONE
from service.settings import Settings


@dataclass(frozen=True)
class Caller:
    """Whose request it is."""

    owner: str = ANYONE
    quota: int | None = None  # unfinished jobs that the key allows for; None: as others
    traceparent: str = ""  # of the trace that the request is part of; "" for none


NOBODY = Caller()


def caller_of(request: Request) -> Caller:
    """Return what the surrounding middleware has found out about a request."""
    state = request.state
    key = getattr(state, "api_key", None)
    return Caller(
        owner=getattr(state, "owner", ANYONE),
        quota=key and key.max_jobs,
        traceparent=getattr(state, "traceparent", ""),
    )


def base_url_of(request: Request, settings: Settings) -> str:
    """Return what links to this server begin with."""
    return (settings.public_url or str(request.base_url)).rstrip("/")
