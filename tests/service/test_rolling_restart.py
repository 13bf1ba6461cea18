"""Every process is replaced under load, one after the other, and no client notices."""

import asyncio
import itertools
import signal

import httpx
import pytest

from tests.service.fleet import PATIENCE_S, Fleet, Process, ask, end_of, is_image

pytestmark = pytest.mark.anyio

NUM_CLIENTS = 6


class LoadBalancer:
    """Sends each request to the next API, and to another one where it was not taken: the
    connection was refused or closed without a word, or the API is draining. Any other error is
    the client's. That nothing was taken of what is passed on is seen by the queue's count."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.num_passed_on = 0
        self._numbers = itertools.count()
        self._client = httpx.AsyncClient(timeout=2 * PATIENCE_S)

    async def ask(self, seed: int) -> httpx.Response:
        """Ask for an image."""
        for _ in range(20):
            url = self.urls[next(self._numbers) % len(self.urls)]
            try:
                reply = await ask(self._client, seed, api=url)
            except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
                pass
            else:
                if not _is_draining(reply):
                    return reply
            self.num_passed_on += 1
            await asyncio.sleep(0.02)
        raise AssertionError("no API takes requests")

    async def close(self) -> None:
        await self._client.aclose()


def _is_draining(reply: httpx.Response) -> bool:
    return reply.status_code == 503 and reply.json()["error"]["code"] == "draining"


async def end(process: Process) -> None:
    """Let a process end in its own time, and well."""
    process.send_signal(signal.SIGTERM)
    assert 0 == await end_of(process)


async def test_a_rolling_restart_is_not_noticed(fleet: Fleet) -> None:
    """Two APIs and three workers are replaced under load: every request is answered with its
    image, no job loses an attempt, nothing is left over, and all end with status 0."""
    workers = [fleet.worker(0.02, "--shutdown-grace-s", "0.3") for _ in range(3)]
    apis = [fleet.api() for _ in range(2)]
    balancer = LoadBalancer()
    balancer.urls = [url for _, url in apis]
    seeds, stop = itertools.count(), asyncio.Event()

    async def keep_asking() -> None:
        while not stop.is_set():
            seed = next(seeds)
            assert is_image(await balancer.ask(seed), seed)

    clients = [asyncio.create_task(keep_asking()) for _ in range(NUM_CLIENTS)]
    for worker in workers:
        await asyncio.to_thread(fleet.worker, 0.02)
        await end(worker)
    for i, (api, _) in enumerate(apis):
        await end(api)  # while clients are still sent to it
        _, balancer.urls[i] = await asyncio.to_thread(fleet.api)
    stop.set()
    await asyncio.gather(*clients)
    await balancer.close()
    num_asked = next(seeds)
    assert num_asked > 50
    assert balancer.num_passed_on
    assert num_asked == fleet.counter("accepted") == fleet.counter("ended:succeeded")
    assert (0, 0, 0) == (fleet.counter("redelivered"), fleet.size("ready"), fleet.size("lease"))
