"""Who may ask: API keys in front of everything but probes, documentation and the playground.

Pure ASGI, outside the application and inside what gives requests their id. What is open is listed,
so that a route which nobody thought of is closed. Without keys the process serves its own machine
alone, unless told otherwise: it neither listens elsewhere, nor answers to a name that others may
have let point here, as a web page can that a browser on this machine shows.
"""

import ipaddress
import logging
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api_keys import ApiKey
from service.errors import Forbidden, ServiceError, StartupError, Unauthorized
from service.jobs import ANYONE
from service.keyring import Keyring
from service.metrics import Metrics
from service.middleware import error_response
from service.rate_limit import NO_MODEL, is_for_images
from service.settings import Settings

logger = logging.getLogger("bar.auth")

OPEN = frozenset(
    {"/livez", "/readyz", "/startupz", "/health", "/ping", "/v2/health/live", "/v2/health/ready"}
    | {"/", "/docs", "/openapi.json", "/version"}
)
OPEN_FOLDERS = ("/static/",)  # of the playground
METRICS = "/metrics"
HOW = "send one as Authorization: Bearer KEY, or as X-API-Key: KEY"


def is_open(path: str) -> bool:
    """Say whether `path` needs no key, letter by letter."""
    return path in OPEN or path.startswith(OPEN_FOLDERS)


def check_exposure(settings: Settings, keyring: Keyring | None) -> None:
    """Raise StartupError if the settings open the service to a network without keys."""
    if keyring is None and not settings.insecure_no_keys and not _is_loopback(settings.host):
        raise StartupError(
            f"--host {settings.host} lets other machines in, and there are no API keys. Make one: "
            "bar keys create NAME --file keys.json; then serve with --api-keys-file keys.json. "
            "Where something else keeps strangers out, say --insecure-no-keys"
        )


class Authentication:
    """Lets a request pass if its key is in force, and says whose it is in `scope["state"]`.

    `owner` is the key's name, and `api_key` what is kept of the key; or ANYONE, and None.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, keyring: Keyring | None, metrics: Metrics
    ) -> None:
        self._app, self._keyring, self._metrics = app, keyring, metrics
        self._has_public_metrics = settings.public_metrics
        self._is_for_this_machine = keyring is None and not settings.insecure_no_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 403; its body is not read for that."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        key = None
        try:
            if not (is_open(scope["path"]) or self._is_public(scope["path"])):
                key = self._check(Headers(scope=scope))
        except ServiceError as error:
            await self._refuse(error, scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["api_key"], state["owner"] = key, key.name if key else ANYONE
        await self._app(scope, receive, send)

    def _is_public(self, path: str) -> bool:
        return path == METRICS and self._has_public_metrics

    def _check(self, headers: Headers) -> ApiKey | None:
        """Return the key that came; None where none is needed. Raises: Unauthorized, Forbidden."""
        if self._keyring is None:
            if self._is_for_this_machine and not _is_local_name(headers.get("host", "")):
                raise Forbidden(
                    "without API keys only names of the service's own machine are answered: its "
                    "operator can make keys (bar keys), or say --insecure-no-keys"
                )
            return None
        sent = _keys_sent(headers)
        if not sent:
            raise Unauthorized(f"an API key is needed: {HOW}")
        if len(sent) > 1:
            raise Unauthorized(f"the request has several API keys: {HOW}")
        key = self._keyring.find(sent.pop())
        if key is None:
            raise Unauthorized("the API key is not known, or not any more")
        if key.has_expired():
            raise Unauthorized(f"the API key of {key.name} has expired")
        return key

    async def _refuse(
        self, error: ServiceError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        reason, _, _for_the_client = str(error).partition(":")
        logger.info("request refused", extra={"reason": reason})
        if is_for_images(scope):
            self._metrics.count_rejection(NO_MODEL, error.code)
        response = error_response(error)
        if isinstance(error, Unauthorized):
            has_key = bool(_keys_sent(Headers(scope=scope)))
            challenge = 'Bearer error="invalid_token"' if has_key else "Bearer"
            response.headers["WWW-Authenticate"] = challenge
        await response(scope, receive, send)


def _keys_sent(headers: Headers) -> set[str]:
    keys = set(headers.getlist("x-api-key"))
    for value in headers.getlist("authorization"):
        scheme, _, text = value.partition(" ")
        if scheme.lower() == "bearer":
            keys.add(text.strip())
    return keys - {""}


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return address.is_loopback if address else host == "localhost"


def _is_local_name(host: str) -> bool:
    """Say whether no stranger can own the name in a Host header: it is an address, or a name that
    is not looked up in public."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return False
    return "." not in name or name.endswith(".localhost") or _address(name) is not None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
