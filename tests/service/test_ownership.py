"""Facts of whose jobs are whose: they belong to the name of the key that asked for them."""

from pathlib import Path

import pytest

from service.api_keys import make_key
from tests.service.harness import URL, error_of, running
from tests.service.key_files import bearer, entry, write_keys

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a file of keys will be."""
    return tmp_path / "keys.json"


OTHERS = [
    ("GET", ""), ("GET", "?wait=1"), ("GET", "/content"), ("GET", "/content?index=0"),
    ("GET", "/events"), ("POST", "/cancel"), ("DELETE", ""),
]  # fmt: skip


@pytest.mark.parametrize(("method", "tail"), OTHERS)
async def test_someone_elses_job_is_not_there(path: Path, method: str, tail: str) -> None:
    """404, word for word as for an id that nobody has; and the job is not touched."""
    alice, bob = make_key(), make_key()
    write_keys(path, entry("alice", alice), entry("bob", bob))
    async with running(api_keys_file=path) as h:
        h.engine.gate.clear()
        headers = {**bearer(alice), "prefer": "respond-async"}
        job_id = (await h.generate(headers, class_id=1)).json()["id"]
        answers = [
            await h.client.request(method, f"{URL}/{name}{tail}", headers=bearer(bob))
            for name in (job_id, job_id[:-1] + ("0" if job_id[-1] != "0" else "1"))
        ]
        assert [404, 404] == [reply.status_code for reply in answers]
        assert answers[0].text.replace(job_id, "") == answers[1].text.replace(job_id, "")
        h.engine.gate.set()
        ended = await h.client.get(f"{URL}/{job_id}?wait=20", headers=bearer(alice))
        assert "succeeded" == ended.json()["status"]
        after = await h.client.request(method, f"{URL}/{job_id}{tail}", headers=bearer(bob))
        assert 404 == after.status_code


async def test_each_owner_lists_their_own_jobs(path: Path) -> None:
    """Those of all keys of the name, and nobody else's."""
    old, new, bob = make_key(), make_key(), make_key()
    write_keys(path, entry("alice", old), entry("alice", new), entry("bob", bob))
    async with running(api_keys_file=path) as h:
        made = {}
        for key in (old, new, bob):
            headers = {**bearer(key), "prefer": "respond-async"}
            made[key] = (await h.generate(headers, class_id=1)).json()["id"]

        async def listed(key: str) -> set[str]:
            reply = await h.client.get(URL, headers=bearer(key))
            return {entry["id"] for entry in reply.json()["data"]}

        assert {made[old], made[new]} == await listed(old) == await listed(new)
        assert {made[bob]} == await listed(bob)


async def test_a_quota_is_one_owners(path: Path) -> None:
    """Who has too many unfinished jobs is refused; others are not."""
    alice, bob = make_key(), make_key()
    write_keys(path, entry("alice", alice), entry("bob", bob))
    async with running(api_keys_file=path, max_owner_jobs=2) as h:
        h.engine.gate.clear()
        replies = [
            await h.generate({**bearer(key), "prefer": "respond-async"}, class_id=1)
            for key in (alice, alice, alice, bob)
        ]
        assert [202, 202, 429, 202] == [reply.status_code for reply in replies]
        assert "quota_exceeded" == error_of(replies[2])["code"]
        assert "alice" not in replies[2].text
        h.engine.gate.set()


async def test_an_idempotency_key_is_its_owners(path: Path) -> None:
    """The same key of two owners stands for two jobs."""
    alice, bob = make_key(), make_key()
    write_keys(path, entry("alice", alice), entry("bob", bob))
    async with running(api_keys_file=path) as h:
        ids = [
            (await h.generate({**bearer(key), "idempotency-key": "k"}, class_id=1)).json()["id"]
            for key in (alice, alice, bob)
        ]
        assert ids[0] == ids[1] != ids[2]
