"""Facts of `bar bench queue`: a report, a server of its own, and nothing that is left behind."""

import json

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from service.cli import main as bar
from service.commands.bench_queue import main
from service.commands.own_redis import HOW_TO_GET_ONE, find_server, own_redis
from service.errors import StartupError
from service.redis_client import connect_blocking
from tests.service.redis_server import RedisServer

SMALL = ["--jobs", "20", "--wakes", "3", "--result-bytes", "100"]


def test_it_measures_a_server_and_leaves_nothing_there(
    redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output holds one line of JSON; of the benchmark's queues no key remains."""
    redis_server.flush()
    redis_server.client.set("somebody's", "data")
    assert 0 == bar(["bench", "queue", "--redis-url", redis_server.url, *SMALL, "--json"])
    shown = capsys.readouterr().out
    assert 1 == shown.count("\n") == len(shown.splitlines())
    report = json.loads(shown)
    wanted = "jobs_per_s jobs_per_core_s lua_share admit_us claim_us complete_us answer_us"
    assert all(report[name] > 0 for name in wanted.split())
    assert 0 < report["wake_p50_ms"] <= report["wake_p99_ms"]
    assert (20, 3) == (report["jobs"], report["wakes"])
    assert [b"somebody's"] == redis_server.client.keys("*")


def test_it_starts_a_server_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --redis-url nothing has to be prepared; a name and a number stand on each line."""
    assert 0 == main(SMALL)
    table = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(table["jobs_per_s"]) > 0
    assert "." in table["redis_version"]


def test_a_server_of_ones_own_ends_with_its_block() -> None:
    """It answers inside, and not afterwards."""
    with own_redis() as url, connect_blocking(url) as client:
        assert client.ping()
    with pytest.raises(RedisConnectionError), connect_blocking(url) as client:
        client.ping()


def test_a_server_that_is_not_there_says_how_to_get_one() -> None:
    """The name that was asked for, and what to install."""
    with pytest.raises(StartupError, match="no 'no-such-server'") as error:
        find_server("no-such-server")
    assert HOW_TO_GET_ONE in str(error.value)
