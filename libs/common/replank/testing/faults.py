"""A TCP proxy in the test's own process that breaks connections on demand.

Point a client at ``proxy.address`` instead of the server, and break the way between them::

    proxy = await fault_proxy("127.0.0.1:5432")
    proxy.cut()                 # every connection is reset, new ones are taken
    await proxy.refuse()        # every connection is reset, new ones are refused
    proxy.stall()               # connections stay open and nothing passes: the slow death that needs a timeout
    proxy.strand()              # open connections are silent for good, new ones pass: their server has vanished
    proxy.slow(delay=0.2)       # every chunk waits
    proxy.cut_after(1_000_000)  # reset in the middle of a transfer
    await proxy.heal()          # all as before

A Kafka client only learns the brokers' own addresses through the proxy and then goes to them directly; to break Kafka,
stop the broker, or have it advertise the proxy's address.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal, Self
from urllib.parse import urlsplit, urlunsplit

_CHUNK: Final = 64 * 1024
Direction = Literal["to_server", "to_client"]


class FaultProxy:
    """Forwards TCP connections to ``target`` (``host:port``, or a URL that has both), until told otherwise.

    Use it with ``async with``.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target if "://" in target else f"//{target}")
        if parts.hostname is None or parts.port is None:
            raise ValueError("the target of a FaultProxy needs a host and a port")
        self._target = (parts.hostname, parts.port)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._delay = 0.0
        self._limits: dict[Direction, int | None] = {"to_server": None, "to_client": None}
        self.accepted = 0

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def host(self) -> str:
        """Where the proxy listens: always loopback."""
        return "127.0.0.1"

    @property
    def port(self) -> int:
        """The port; it stays the same through `refuse` and `heal`."""
        return self._port

    @property
    def address(self) -> str:
        """``host:port`` for the client."""
        return f"{self.host}:{self.port}"

    def in_front_of(self, url: str) -> str:
        """The same URL by way of this proxy: credentials, path and query stay."""
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials}{at}{self.address}"))

    @property
    def connections(self) -> int:
        """How many connections are open now; ``accepted`` counts all there ever were."""
        return len(self._links)

    def cut(self) -> None:
        """Reset every open connection. New ones are forwarded as usual."""
        for link in tuple(self._links):
            link.reset()

    async def refuse(self) -> None:
        """Reset every open connection and refuse new ones, as if the server were gone."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self.cut()
        if server is not None:
            await server.wait_closed()

    def stall(self) -> None:
        """Keep connections open, take new ones, and let nothing pass until `heal`."""
        self._flowing.clear()

    def strand(self) -> None:
        """Let nothing pass on the open connections any more, not even after `heal`. New ones are forwarded.

        So it is when a server fails over, or a firewall forgets a connection: nobody is told.
        """
        for link in self._links:
            link.stranded = True

    def slow(self, *, delay: float) -> None:
        """Let every chunk of up to 64 KiB wait for ``delay`` seconds, in either direction."""
        self._delay = delay

    def cut_after(self, size: int, direction: Direction = "to_server") -> None:
        """Reset a connection once ``size`` bytes have passed in that direction, each counted from now."""
        self._limits[direction] = size
        for link in self._links:
            link.passed[direction] = 0

    async def heal(self) -> None:
        """Forward everything as at the beginning. Connections that only stalled go on."""
        self._delay = 0.0
        self._limits = {"to_server": None, "to_client": None}
        self._flowing.set()
        if self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, self.host, self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        # A task of our own: asyncio's server complains of a handler that is cancelled.
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        link = _Link(writer, server_writer)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(link, reader, server_writer, "to_server"))
                group.create_task(self._forward(link, server_reader, writer, "to_client"))
        finally:
            self._links.discard(link)
            link.reset()

    async def _forward(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        # A broken connection is this class's business, not an error: it is what the test asked for. (Half-closing a
        # socket that was reset meanwhile is ENOTCONN, which is no ConnectionError.)
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._flowing.wait()
                if link.stranded:
                    continue
                limit = self._limits[direction]
                link.passed[direction] += len(chunk)
                if limit is not None and link.passed[direction] > limit:
                    link.reset()
                    return
                writer.write(chunk)
                await writer.drain()
            await self._flowing.wait()
            if writer.can_write_eof():
                writer.write_eof()


class _Link:
    """The two sockets of one forwarded connection, and how many bytes went each way."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._ends = (client, server)
        self.passed: dict[Direction, int] = {"to_server": 0, "to_client": 0}
        self.stranded = False

    def reset(self) -> None:
        for end in self._ends:
            _reset(end)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once and with a TCP reset, as a killed peer behind a firewall would appear."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def unused_address() -> AsyncIterator[str]:
    """``host:port`` on which nothing listens, reserved meanwhile: connecting to it is refused."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"
