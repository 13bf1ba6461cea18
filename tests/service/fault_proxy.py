"""A line to a server that delays, cuts, and loses replies when a test says so."""

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
        self.total_swallowed = 0
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
            if self.num_swallowed:
                self.num_swallowed -= 1
                self.total_swallowed += 1
                break
            writer.write(data)
            await writer.drain()
        writer.transport.abort()
