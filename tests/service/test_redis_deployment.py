"""Facts of servers as people run them: a restricted user, TLS, a node of a cluster, an outage."""

import asyncio
import logging
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import redis

from service.commands.own_redis import free_port
from service.errors import QueueUnavailable
from service.jobs import JobState
from service.redis_queue import RedisJobQueue
from service.redis_work import RedisWorkQueue
from tests.service.log_lines import said
from tests.service.queue_ends import POLICY, RESULT, job
from tests.service.redis_server import RedisServer

pytestmark = pytest.mark.anyio

FAST = replace(POLICY, lease_s=1.0, reap_interval_s=0.2)
QUEUE_SLOT = "{bar:digits}:meta"


@asynccontextmanager
async def live(url: str) -> AsyncIterator[tuple[RedisJobQueue, RedisWorkQueue]]:
    """Run both ends of a queue, with all that they do beside their verbs."""
    api = RedisJobQueue(url, "digits", FAST, name="api")
    work = RedisWorkQueue(url, "digits", FAST, name="worker")
    async with api.running(), work.running():
        yield api, work


async def use_every_verb(url: str) -> None:
    """Take jobs to all of their ends on the server at `url`."""
    async with live(url) as (api, work):
        for name in "abcd":
            await api.admit(job(name))
        assert JobState.QUEUED is await api.cancel("d")
        stored, failed, running = await work.claim(3)
        assert await work.complete(stored, RESULT)
        assert await work.fail(failed, "broken")
        await asyncio.sleep(1.5)  # renewed, reaped, and told by heartbeats
        assert await work.complete(running, RESULT)
        assert RESULT == (await api.wait("a")).result
        await api.forget("a")
        stats = await api.stats()
        assert (4, 0, 0) == (stats.num_accepted, stats.jobs_waiting, stats.num_redelivered)
        assert [] == await api.dead_letters()


async def test_the_documented_user_may_do_all_that_is_needed_and_no_more(
    redis_server: RedisServer,
) -> None:
    """Its keys and channels are the queues'; the server refuses it anything else."""
    redis_server.flush()
    redis_server.command("ACL", "LOG", "RESET")
    await use_every_verb(redis_server.url)
    refused = cast("list[list[object]]", redis_server.command("ACL", "LOG"))
    # redis-py says its name to a new connection, and does without where it may not.
    assert {entry[entry.index(b"object") + 1] for entry in refused} <= {b"client"}
    with redis.Redis.from_url(redis_server.url) as client:
        for command in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("GET", "else"), ("KEYS", "*")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.publish("else", "x")


@pytest.mark.parametrize("rights", [
    "~{bar:* resetchannels &{bar:* +@all -@scripting",  # may not run scripts
    "~{bar:* resetchannels &{bar:* +@all -hset",  # may not do what a script does
    "~{bar:* resetchannels +@all",  # may not listen
    "resetchannels &{bar:* +@all",  # may not touch the keys
])  # fmt: skip
async def test_rights_that_are_missing_are_told(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, rights: str
) -> None:
    """A service whose user may too little stays up, refuses with 503, and logs what it lacks."""
    redis_server.flush()
    redis_server.command("ACL", "SETUSER", "poor", "reset", "on", ">poor", *rights.split())
    url = redis_server.url.replace("bar:secret", "poor:poor")
    api = RedisJobQueue(url, "digits", FAST, name="api")
    async with api.running():
        with suppress(QueueUnavailable):
            await api.admit(job("a"))
        while not re.search("does not grant|no permissions", caplog.text):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    redis_server.command("ACL", "DELUSER", "poor")


async def test_all_of_a_queue_lies_in_one_slot_of_a_cluster(tmp_path: Path) -> None:
    """A node that has this one slot of 16,384 runs every verb: whatever touched a key of another
    slot would be refused."""
    with RedisServer(tmp_path, cluster_enabled="yes", cluster_require_full_coverage="no") as node:
        slot = node.command("CLUSTER", "KEYSLOT", QUEUE_SLOT)
        node.command("CLUSTER", "ADDSLOTS", str(slot))
        while b"cluster_state:ok" not in _text(node.command("CLUSTER", "INFO")):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        with pytest.raises(redis.exceptions.RedisError, match=r"slot not served|CLUSTERDOWN"):
            node.client.set("{bar:bar-b}:meta", "elsewhere")
        await use_every_verb(node.url)


def _text(reply: object) -> bytes:
    return reply if isinstance(reply, bytes) else repr(reply).replace("': '", ":").encode()


@pytest.fixture
def tls_url(tmp_path: Path) -> Iterator[str]:
    """Where a server listens for TLS."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl, which makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=queue", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    server = RedisServer(
        tmp_path, tls_port=str(port), tls_cert_file=str(certificate), tls_key_file=str(key),
        tls_ca_cert_file=str(certificate), tls_auth_clients="no",
    )  # fmt: skip
    try:
        server.start()
    except RuntimeError:
        pytest.skip("this server knows no TLS; choose another: REDIS_SERVER=/usr/bin/redis-server")
    yield f"rediss://bar:secret@127.0.0.1:{port}/0"
    server.stop()


async def test_certificates_are_checked(
    tls_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the authority that the URL names everything works over TLS; without it nothing is sent,
    and the log says why; a certificate that names another host is no better."""
    trusting = f"{tls_url}?ssl_ca_certs={tmp_path / 'certificate.pem'}"
    await use_every_verb(trusting)
    for wrong in (tls_url, trusting.replace("127.0.0.1", "localhost")):
        caplog.clear()
        async with live(wrong) as (api, _):
            with pytest.raises(QueueUnavailable):
                await api.admit(job("a"))
            while "certificate verify failed" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_an_outage_is_told_in_few_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each thing that is wrong with the server is one line, and that it is back another."""
    caplog.set_level(logging.INFO, "bar.queue")
    with RedisServer(tmp_path) as server:
        api = RedisJobQueue(server.url, "digits", FAST, name="api")
        async with api.running():
            await api.admit(job("a"))
            server.kill()
            await asyncio.sleep(1.0)
            server.start()
            while "answers again" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    *errors, end = [record.message for record in said(caplog, "bar.queue", logging.INFO)]
    assert "the queue's server answers again" == end
    assert all(line.startswith("the queue's server is away: ") for line in errors)
    assert 1 <= len(errors) == len(set(errors))
