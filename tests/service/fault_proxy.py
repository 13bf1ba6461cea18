"""A line to a server that delays, cuts, and loses replies when a test says so.

What goes wrong again and again does so after so many replies, not seconds: on a slow machine it
would go wrong before anything went right.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class FaultProxy:
    """Passes bytes on between clients and the server at `port` of the loopback."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.delay_s = 0.0  # before each reply
        self.num_swallowed = 0  # replies to lose, each with its connection
        self.swallow_every = 0  # the how manieth reply is lost as well; 0: none
        self.cut_every = 0  # after how many replies every connection breaks; 0: never
        self.total_replies = self.total_swallowed = self.total_cuts = 0
        self.is_cut = False  # nobody gets through

    @property
    def url(self) -> str:
        return f"redis://bar:secret@127.0.0.1:{self.port}/0"

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FaultProxy"]:
        """Serve on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await asyncio.sleep(0.01)

    def cut(self) -> None:
        """Break every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        with suppress(OSError):
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._port)
            self._writers |= {writer, to_writer}
            try:
                await asyncio.gather(
                    self._pass(reader, to_writer), self._pass_replies(to_reader, writer)
                )
            finally:
                self._writers -= {writer, to_writer}
                writer.transport.abort()
                to_writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.transport.abort()

    async def _pass_replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            self.total_replies += 1
            if _is_due(self.cut_every, self.total_replies):
                self.total_cuts += 1
                self.cut()
                break
            if self.num_swallowed or _is_due(self.swallow_every, self.total_replies):
                self.num_swallowed = max(self.num_swallowed - 1, 0)
                self.total_swallowed += 1
                break
            writer.write(data)
            await writer.drain()
        writer.transport.abort()


def _is_due(every: int, number: int) -> bool:
    return every > 0 and number % every == 0
