"""Renews a worker's leases, from a thread of its own.

Neither a long step nor a busy event loop may cost a worker its jobs, but a hung one must: leases
are renewed only while the worker's loop shows signs of life. A worker whose loop has stopped is
reported once, so that its process can end and others take over at once.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from redis.exceptions import RedisError

from service.redis_client import connect_blocking
from service.redis_scripts import Hold, QueueScripts

logger = logging.getLogger("bar.worker")

RETRY_S = 0.25


class LeaseKeeper:
    """A thread that renews what `holds` returns every third of `lease_s`."""

    def __init__(
        self,
        scripts: QueueScripts,
        url: str,
        worker: str,
        *,
        lease_s: float,
        stall_s: float,
        holds: Callable[[], Iterable[Hold]],
        on_lost: Callable[[list[Hold]], None],
        on_stall: Callable[[], None],
    ) -> None:
        self._scripts, self._url, self._worker = scripts, url, worker
        self._interval_s, self._stall_s = lease_s / 3, stall_s
        self._holds, self._on_lost, self._on_stall = holds, on_lost, on_stall
        self._alive_at = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing, and wait for the thread unless it is the one that calls."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=2)

    def beat(self) -> None:
        """Show that the worker's loop turns."""
        self._alive_at = time.monotonic()

    def _run(self) -> None:
        client = connect_blocking(self._url)
        pause_s = self._interval_s
        while not self._stopped.wait(pause_s):
            pause_s = min(self._interval_s, self._stall_s / 3)
            holds = list(self._holds())
            silent_s = time.monotonic() - self._alive_at
            if holds and silent_s > self._stall_s:
                logger.critical("no step for %.1f s: %d jobs are given up", silent_s, len(holds))
                self._on_stall()
                break
            if not holds:
                continue
            try:
                lost = set(self._scripts.renew_blocking(client, self._worker, holds))
            except (RedisError, OSError) as error:
                logger.warning("leases were not renewed: %s", error)
                pause_s = RETRY_S
            else:
                if lost:
                    self._on_lost([hold for hold in holds if hold[0] in lost])
        client.close()
