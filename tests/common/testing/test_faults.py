"""The proxy breaks connections in the ways that it says, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
import pytest_asyncio

from replank.testing import eventually
from replank.testing.faults import FaultProxy, unused_address
from replank.testing.plugin import FaultProxies


@pytest_asyncio.fixture
async def proxy(fault_proxy: FaultProxies) -> AsyncIterator[FaultProxy]:
    """In front of a server that sends back what it is sent."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield await fault_proxy(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    server.close()


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], text: bytes = b"hello") -> bytes:
    reader, writer = streams
    writer.write(text)
    await writer.drain()
    return await reader.readexactly(len(text))


async def test_it_forwards_both_ways_until_told_otherwise(proxy: FaultProxy) -> None:
    async with connected(proxy) as streams:
        assert await ask(streams) == b"hello"
        assert await ask(streams, b"x" * 1_000_000) == b"x" * 1_000_000
        assert proxy.connections == 1
        streams[1].write_eof()
        assert await streams[0].read() == b"", "the end of one side reaches the other"
    await eventually(lambda: proxy.connections == 0, "the connection is forgotten")


async def test_cut_resets_what_is_open_and_takes_what_is_new(proxy: FaultProxy) -> None:
    async with connected(proxy) as streams:
        await ask(streams)
        proxy.cut()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await ask(streams)
    async with connected(proxy) as streams:
        assert await ask(streams) == b"hello"


async def test_refuse_turns_new_connections_away_until_healed(proxy: FaultProxy) -> None:
    await proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        async with connected(proxy):
            pass
    await proxy.heal()
    async with connected(proxy) as streams:
        assert await ask(streams) == b"hello"


async def test_stall_holds_everything_and_loses_nothing(proxy: FaultProxy) -> None:
    async with connected(proxy) as streams:
        await ask(streams)
        proxy.stall()
        asking = asyncio.create_task(ask(streams))
        done, _ = await asyncio.wait({asking}, timeout=0.2)
        assert not done
        await proxy.heal()
        assert await asking == b"hello"


async def test_strand_silences_what_is_open_for_good_and_takes_what_is_new(proxy: FaultProxy) -> None:
    async with connected(proxy) as streams:
        await ask(streams)
        proxy.strand()
        await proxy.heal()
        asking = asyncio.create_task(ask(streams))
        done, _ = await asyncio.wait({asking}, timeout=0.2)
        assert not done
        assert proxy.connections == 1, "nobody was told"
        async with connected(proxy) as others:
            assert await ask(others) == b"hello"
        asking.cancel()


async def test_slow_delays_each_way(proxy: FaultProxy) -> None:
    proxy.slow(delay=0.1)
    async with connected(proxy) as streams:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await ask(streams)
        assert loop.time() - began >= 0.2


async def test_cut_after_breaks_in_the_middle_of_a_transfer(proxy: FaultProxy) -> None:
    proxy.cut_after(300_000)
    async with connected(proxy) as streams:
        assert await ask(streams, b"x" * 100_000) == b"x" * 100_000
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await ask(streams, b"x" * 1_000_000)


async def test_a_real_driver_sees_a_dead_server(
    fault_proxy: FaultProxies, postgres_server: str, postgres_dsn: str
) -> None:
    address = postgres_dsn.rpartition("@")[2].partition("/")[0]
    proxy = await fault_proxy(address)
    conn = await asyncpg.connect(postgres_dsn.replace(address, proxy.address), ssl=False)
    assert await conn.fetchval("select 1") == 1
    proxy.cut()
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
        await conn.fetchval("select 1")
    conn.terminate()


async def test_nothing_listens_on_an_unused_address() -> None:
    async with unused_address() as address:
        host, port = address.split(":")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))
