"""Facts of who may ask: refusals of every kind, what stays open, and that nothing leaks."""

import asyncio
import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from service import keyring
from service.api_keys import hash_of, make_key
from service.auth import Authentication, check_exposure
from service.errors import StartupError
from service.keyring import Keyring
from service.logs import JsonFormatter, TextFormatter
from service.metrics import Metrics
from service.settings import Settings
from tests.service.harness import URL, error_of, listening, running
from tests.service.key_files import bearer, entry, one_key, spoil, write_keys

pytestmark = pytest.mark.anyio

OPEN = {"/livez", "/readyz", "/startupz", "/health", "/ping", "/v2/health/live", "/v2/health/ready",
        "/version", "/docs", "/openapi.json", "/"}  # fmt: skip
PAST, FUTURE = "2020-01-01T00:00:00Z", "2120-01-01T00:00:00Z"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a file of keys is, or will be."""
    return tmp_path / "keys.json"


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """Collect everything that is logged at any level, as text and as JSON."""
    text, root = io.StringIO(), logging.getLogger()
    handlers = [logging.StreamHandler(text), logging.StreamHandler(text)]
    for handler, formatter in zip(handlers, (JsonFormatter(), TextFormatter()), strict=True):
        handler.setFormatter(formatter)
        root.addHandler(handler)
    level = root.level
    root.setLevel(logging.DEBUG)
    try:
        yield text
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER  {} "])
async def test_a_key_is_sent_as_a_bearer_token(path: Path, form: str) -> None:
    """As OpenAI's clients send it; the scheme is written in any case."""
    key = one_key(path)
    async with running(api_keys_file=path) as h:
        reply = await h.generate({"authorization": form.format(key)}, class_id=1)
        assert 200 == reply.status_code


async def test_a_key_is_sent_as_x_api_key(path: Path) -> None:
    """Also beside credentials of another kind, which are for a proxy in front, or the same key."""
    key = one_key(path)
    async with running(api_keys_file=path) as h:
        for headers in (
            {"x-api-key": key},
            {"x-api-key": key, "authorization": "Basic dXNlcjpwYXNz"},
            {"x-api-key": key, **bearer(key)},
        ):
            assert 200 == (await h.generate(headers, class_id=1)).status_code


async def test_several_keys_are_in_force_at_once(path: Path) -> None:
    """Those of the file, two of one name among them, and those of the setting."""
    keys = [make_key() for _ in range(4)]
    write_keys(
        path,
        entry("alice", keys[0]),
        entry("alice", keys[1]),
        entry("bob", keys[2], expires=FUTURE),
    )
    hashes = f"carol={hash_of(keys[3])}"
    async with running(api_keys_file=path, api_key_hashes=hashes) as h:
        for key in keys:
            assert 200 == (await h.client.get("/v1/models", headers=bearer(key))).status_code


@pytest.mark.parametrize(("headers", "challenge"), [
    ({}, "Bearer"),
    ({"authorization": ""}, "Bearer"),
    ({"authorization": "Bearer"}, "Bearer"),
    ({"authorization": "Bearer "}, "Bearer"),
    ({"authorization": "{key}"}, "Bearer"),
    ({"authorization": "Basic {key}"}, "Bearer"),
    ({"authorization": "Token {key}"}, "Bearer"),
    ({"x-api-key": ""}, "Bearer"),
    ({"cookie": "key={key}"}, "Bearer"),
    ({"x-auth-token": "{key}"}, "Bearer"),
    ({"authorization": "Bearer {wrong}"}, 'Bearer error="invalid_token"'),
    ({"authorization": "Bearer {old}"}, 'Bearer error="invalid_token"'),
    ({"authorization": "Bearer {hash}"}, 'Bearer error="invalid_token"'),
    ({"authorization": "Bearer {key}x"}, 'Bearer error="invalid_token"'),
    ({"authorization": "Bearer {key},{key}"}, 'Bearer error="invalid_token"'),
    ({"authorization": "Bearer {long}"}, 'Bearer error="invalid_token"'),
    ({"x-api-key": "{wrong}"}, 'Bearer error="invalid_token"'),
    ({"x-api-key": "Bearer {key}"}, 'Bearer error="invalid_token"'),
    ({"x-api-key": "{wrong}", "authorization": "Bearer {key}"}, 'Bearer error="invalid_token"'),
    ({"x-api-key": "{key}", "authorization": "Bearer {wrong}"}, 'Bearer error="invalid_token"'),
], ids=str)  # fmt: skip
async def test_without_a_key_in_force_the_answer_is_401(
    path: Path, headers: dict[str, str], challenge: str
) -> None:
    """No key, a wrong one, an expired one, two: the envelope, the challenge, nothing repeated."""
    key, wrong, old = make_key(), make_key(), make_key()
    write_keys(path, entry("alice", key), entry("bob", old, expires=PAST))
    words = {"key": key, "wrong": wrong, "old": old, "hash": hash_of(key), "long": "x" * 60_000}
    sent = {name: value.format(**words) for name, value in headers.items()}
    with logged() as log:
        async with running(api_keys_file=path) as h:
            reply = await h.generate(sent, class_id=1, metadata={"note": "private text"})
            assert 0 == (await h.queue.stats()).num_accepted
    assert 401 == reply.status_code
    assert challenge == reply.headers["www-authenticate"]
    error = error_of(reply)
    assert ("invalid_request_error", None, "invalid_api_key") == (
        error["type"], error["param"], error["code"]
    )  # fmt: skip
    assert reply.headers["x-request-id"] in log.getvalue()
    for secret in (key, wrong, old, hash_of(key), "xxxx", "private text", "Traceback"):
        assert secret not in reply.text + str(reply.headers) + log.getvalue()


async def test_refusals_say_what_to_do(path: Path) -> None:
    """Each kind has words of its own; who holds an expired key may know whose it was."""
    key, old = make_key(), make_key()
    write_keys(path, entry("alice", key), entry("bob", old, expires=PAST))
    async with running(api_keys_file=path) as h:
        said = [
            error_of(await h.client.get("/v1/models", headers=headers))["message"]
            for headers in ({}, bearer(make_key()), bearer(old), {**bearer(key), "x-api-key": old})
        ]
    assert 4 == len(set(said))
    assert "Authorization: Bearer KEY" in said[0]
    assert "not known" in said[1]
    assert "bob has expired" in said[2]
    assert "several" in said[3]


@pytest.mark.parametrize("query", ["api_key={}", "key={}", "access_token={}", "authorization={}"])
async def test_a_key_in_the_address_is_not_accepted(path: Path, query: str) -> None:
    """Addresses end up in logs and histories."""
    key = one_key(path)
    with logged() as log:
        async with running(api_keys_file=path) as h:
            reply = await h.client.get(f"/v1/models?{query.format(key)}")
    assert 401 == reply.status_code
    # The client of this test logs what it asks for; the service must not.
    ours = [line for line in log.getvalue().splitlines() if "HTTP Request" not in line]
    assert key not in reply.text + "".join(ours)


async def test_what_needs_no_key_is_exactly_this(path: Path) -> None:
    """Probes, version, documentation and the playground; every other route wants a key."""
    one_key(path)
    async with running(api_keys_file=path) as h:
        routes = (await h.client.get("/openapi.json")).json()["paths"]
        answers = {
            pattern: (await h.client.request(method, pattern.replace("{", "").replace("}", "")))
            for pattern, methods in routes.items()
            for method in methods
        }
        unlisted = {pattern: await h.client.get(pattern) for pattern in ("/", "/docs")}
    assert {"/v1/generations", "/v1/models", "/metrics"} <= set(answers)
    assert OPEN - {"/openapi.json"} <= {*answers, *unlisted}
    for pattern, reply in {**answers, **unlisted}.items():
        assert (401 != reply.status_code) == (pattern in OPEN), pattern
    for pattern, operations in routes.items():
        for operation in operations.values():
            says_so = [operation.get("security"), "401" in operation["responses"]]
            needed: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}]
            assert says_so == ([None, False] if pattern in OPEN else [needed, True]), pattern


@pytest.mark.parametrize("target", [
    "/nowhere", "/v1", "/v1/", "/V1/models", "//v1/models", "/v1/models/", "/livez/", "/livez/x",
    "/livez/../v1/models", "/static/../v1/models", "/static/%2e%2e/v1/models", "/./v1/models",
    "/static", "/livez%00", "/livez%2f", "/livez;/v1/models", "/metrics/", "/openapi.json/",
])  # fmt: skip
async def test_no_spelling_of_a_path_gets_around(path: Path, target: str) -> None:
    """What is not open letter by letter answers 401, or leads to no route that needs a key."""
    one_key(path)
    async with listening(api_keys_file=path) as h:
        reader, writer = await asyncio.open_connection(
            h.client.base_url.host, h.client.base_url.port
        )
        writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        status = int((await reader.readline()).split()[1])
        writer.close()
        await writer.wait_closed()
    assert status == (404 if target.startswith("/static/") else 401)


async def test_other_methods_of_open_paths_do_nothing(path: Path) -> None:
    """A probe can be asked, nothing else."""
    one_key(path)
    async with running(api_keys_file=path) as h:
        assert 405 == (await h.client.post("/livez")).status_code
        assert 401 == (await h.client.options(URL)).status_code


async def test_metrics_need_a_key_unless_they_are_public(path: Path) -> None:
    """They tell about everybody's requests."""
    key = one_key(path)
    async with running(api_keys_file=path) as h:
        assert 401 == (await h.client.get("/metrics")).status_code
        assert 200 == (await h.client.get("/metrics", headers=bearer(key))).status_code
    async with running(api_keys_file=path, public_metrics=True) as h:
        assert 200 == (await h.client.get("/metrics")).status_code
        assert 401 == (await h.client.get("/v1/models")).status_code
    async with running() as h:
        assert 200 == (await h.client.get("/metrics")).status_code


async def test_refused_requests_for_images_are_counted(path: Path) -> None:
    """Others are not: a rejection is a request for images that became no job."""
    key = one_key(path)
    async with running(api_keys_file=path) as h:
        await h.generate(class_id=1)
        await h.generate(bearer(make_key()), class_id=1)
        await h.client.put(f"{URL}/gen_1", json={})
        await h.client.get("/v1/models")
        text = (await h.client.get("/metrics", headers=bearer(key))).text
    counted = re.findall(
        r'^bar_rejections_total\{.*reason="invalid_api_key"\} (\S+)$', text, re.MULTILINE
    )
    assert 3.0 == sum(map(float, counted))


async def test_a_body_is_not_read_for_who_has_no_key(path: Path) -> None:
    """Strangers cannot make the service read."""
    one_key(path)
    app = Authentication(_unreachable, Settings.load({}, {}), Keyring(path=path), Metrics({}))
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": URL, "headers": []}
    await app(scope, receive, send)
    assert 401 == sent[0]["status"]


async def _unreachable(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise AssertionError("the application was reached")


async def test_the_owner_is_the_name_of_the_key(path: Path) -> None:
    """The application sees whose request it is, and never the key."""
    key = one_key(path, "alice")
    seen: list[dict[str, Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"])

    settings = Settings.load({}, {})
    for ring in (Keyring(path=path), None):
        guarded = Authentication(app, settings, ring, Metrics({}))
        headers = [(b"authorization", f"Bearer {key}".encode()), (b"host", b"localhost")]
        scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}
        await guarded(scope, _no_receive, _no_send)
    assert ["alice", "anyone"] == [state["owner"] for state in seen]
    assert key not in repr(seen)


async def _no_receive() -> Any:
    raise AssertionError


async def _no_send(_: Any) -> None:
    raise AssertionError


async def test_keys_change_while_requests_come(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the file changes, also for the worse: who keeps a key is never refused, the
    new key works at once, and the one before is out."""
    monkeypatch.setattr(keyring, "LOOK_AGAIN_S", 0.0)
    steady, key = make_key(), make_key()
    write_keys(path, entry("steady", steady), entry("moving", key))
    statuses: list[int] = []
    async with listening(api_keys_file=path) as h:

        async def ask(headers: dict[str, str]) -> int:
            return (await h.client.get("/v1/models", headers=headers)).status_code

        async def keep_asking() -> None:
            while True:
                statuses.append(await ask(bearer(steady)))

        asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
        for number in range(40):
            before, key = key, make_key()
            if number % 10 == 5:
                spoil(path)
                assert 200 == await ask(bearer(before))
            new = write_keys(path.with_name("next"), entry("steady", steady), entry("moving", key))
            new.replace(path)
            assert (200, 401) == (await ask(bearer(key)), await ask(bearer(before)))
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
    assert {200} == set(statuses)
    assert 40 < len(statuses)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_without_keys_it_may_listen_on_loopback(host: str) -> None:
    """Nobody else reaches it there."""
    check_exposure(Settings.load({"host": host}, {}), None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org", "", "localhost.evil"])
def test_without_keys_it_does_not_listen_elsewhere(host: str, path: Path) -> None:
    """Unless there are keys, or somebody says that it is meant."""
    with pytest.raises(StartupError, match=r"bar keys create.*--insecure-no-keys") as error:
        check_exposure(Settings.load({"host": host}, {}), None)
    assert "\n" not in str(error.value)
    check_exposure(Settings.load({"host": host, "insecure_no_keys": True}, {}), None)
    write_keys(path)
    check_exposure(Settings.load({"host": host}, {}), Keyring(path=path))


@pytest.mark.parametrize(("host", "is_answered"), [
    ("localhost", True), ("localhost:8000", True), ("127.0.0.1:8000", True), ("[::1]:8000", True),
    ("bar", True), ("bar.localhost:80", True), ("10.1.2.3", True), ("LOCALHOST.", True),
    ("evil.example", False), ("evil.example:8000", False), ("evil.example.", False),
    ("127.0.0.1.evil.example", False), ("localhost.evil.example", False), ("x@evil.example", False),
    ("[::1", False),
])  # fmt: skip
async def test_without_keys_only_names_of_this_machine_are_answered(
    host: str, is_answered: bool
) -> None:
    """A page in a browser here cannot reach it through a name that its owner points here."""
    async with running() as h:
        reply = await h.client.get("/v1/models", headers={"host": host})
        if is_answered:
            assert 200 == reply.status_code
        else:
            assert (403, "forbidden") == (reply.status_code, error_of(reply)["code"])
        assert 200 == (await h.client.get("/livez", headers={"host": host})).status_code
    async with running(insecure_no_keys=True) as h:
        assert 200 == (await h.client.get("/v1/models", headers={"host": host})).status_code


async def test_with_keys_any_name_is_answered(path: Path) -> None:
    """A page that does not know a key learns nothing."""
    key = one_key(path)
    async with running(api_keys_file=path) as h:
        headers = {"host": "images.example.org", **bearer(key)}
        assert 200 == (await h.client.get("/v1/models", headers=headers)).status_code


async def test_a_failure_tells_a_client_nothing_and_the_log_no_secrets(path: Path) -> None:
    """A 500 has neither a stack trace nor what was sent; the log has no key and no body."""
    key = one_key(path)

    def explode() -> None:
        raise RuntimeError("internal detail")

    with logged() as log:
        async with running(api_keys_file=path) as h:
            h.engine.fault = explode
            reply = await h.generate(bearer(key), class_id=1, metadata={"note": "private text"})
    assert 500 == reply.status_code
    for secret in (key, "internal detail", "private text", "Traceback", 'File "'):
        assert secret not in reply.text
    for secret in (key, hash_of(key), "private text"):
        assert secret not in log.getvalue()
    assert "internal detail" in log.getvalue()


async def test_keys_work_over_a_real_connection(path: Path) -> None:
    """A refused request with a body leaves the connection in order for the next."""
    key = one_key(path)
    async with listening(api_keys_file=path) as h:
        for _ in range(3):
            refused = await h.client.post(URL, content=b"x" * 50_000)
            assert 401 == refused.status_code
            assert 200 == (await h.generate(bearer(key), class_id=1)).status_code


async def test_an_api_with_a_broken_file_does_not_start(path: Path) -> None:
    """Nothing is served with half of the keys."""
    spoil(path)
    with pytest.raises(StartupError, match="Invalid JSON"):
        async with running(api_keys_file=path):
            pass
