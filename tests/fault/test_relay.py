"""The relay does to a stream what it says, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
from collections.abc import AsyncIterator

import pytest

from fault.relay import HARD, Relay, Way

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Pair:
    """Both ends of a relayed connection."""

    def __init__(self, relay: Relay, client: Streams, server: Streams) -> None:
        self.relay = relay
        self.client_reads, self.client_writes = client
        self.server_reads, self.server_writes = server


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    arrivals: asyncio.Queue[Streams] = asyncio.Queue()

    async def arrive(*streams: asyncio.StreamReader | asyncio.StreamWriter) -> None:
        arrivals.put_nowait(streams)  # type: ignore[arg-type]

    listener = await asyncio.start_server(arrive, "127.0.0.1", 0)
    async with Relay(listener.sockets[0].getsockname()[1]) as relay:
        client = await asyncio.open_connection("127.0.0.1", relay.port)
        server = await arrivals.get()
        try:
            yield Pair(relay, client, server)
        finally:
            for writer in (client[1], server[1]):
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            listener.close()
            await listener.wait_closed()


async def test_it_passes_everything_both_ways_to_the_end(rng: random.Random) -> None:
    async with pair() as ends:
        data = rng.randbytes(300_000)
        for writer, reader in (
            (ends.client_writes, ends.server_reads),
            (ends.server_writes, ends.client_reads),
        ):
            writer.write(data)
            writer.write_eof()
            assert await reader.read(-1) == data
        assert ends.relay.to_server.passed == ends.relay.to_client.passed == len(data)
        assert ends.relay.accepted == 1


async def test_it_cuts_and_gathers(rng: random.Random) -> None:
    async with pair() as ends:
        way = ends.relay.to_server
        way.piece = lambda: rng.randrange(1, 50)
        data = rng.randbytes(5000)
        ends.client_writes.write(data)
        assert await ends.server_reads.readexactly(5000) == data
        way.piece, way.gather = None, 1000
        sizes = itertools.cycle([1, 7, 300])
        for start in range(0, 999, 111):
            ends.client_writes.write(data[start : start + min(next(sizes), 111)])
        await _never(way, 5001)
        ends.client_writes.write(data[:1000])
        await way.reached(6000)


async def _never(way: Way, count: int) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.03):
            await way.reached(count)
            raise AssertionError("it passed")


async def test_a_silent_way_stops_at_the_byte_and_goes_on_with_what_waited() -> None:
    async with pair() as ends:
        ends.relay.to_server.go_silent(after=3)
        ends.client_writes.write(b"abcdef")
        assert await ends.server_reads.readexactly(3) == b"abc"
        ends.server_writes.write(b"other way")
        assert await ends.client_reads.readexactly(9) == b"other way"
        await _never(ends.relay.to_server, 4)
        ends.relay.to_server.resume()
        assert await ends.server_reads.readexactly(3) == b"def"


async def test_it_swallows_what_it_is_told_to() -> None:
    async with pair() as ends:
        ends.relay.to_client.swallowing = True
        ends.server_writes.write(b"lost")
        await ends.relay.to_client.reached(4)
        ends.relay.to_client.swallowing = False
        ends.server_writes.write(b"found")
        assert await ends.client_reads.readexactly(5) == b"found"
        assert ends.relay.to_client.swallowed == 4


async def test_it_delays_and_throttles() -> None:
    async with pair() as ends:
        loop = asyncio.get_running_loop()
        ends.relay.to_server.delay = 0.05
        began = loop.time()
        ends.client_writes.write(b"x")
        await ends.server_reads.readexactly(1)
        assert loop.time() - began >= 0.045
        ends.relay.to_server.delay, ends.relay.to_server.rate, ends.relay.to_server.piece = 0, 10_000, 100
        began = loop.time()
        ends.client_writes.write(bytes(1000))
        await ends.server_reads.readexactly(1000)
        assert loop.time() - began >= 0.085


async def test_it_resets_both_ends() -> None:
    async with pair() as ends:
        await ends.relay.reset()
        for reader in (ends.client_reads, ends.server_reads):
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
        assert ends.relay.open == 0


async def test_it_resets_what_has_only_just_come() -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        async with Relay(target.getsockname()[1]) as relay:
            with socket.create_connection(("127.0.0.1", relay.port)) as client:
                while not relay.accepted:
                    await asyncio.sleep(0)
                await relay.reset()
                assert relay.open == 0
                with pytest.raises(ConnectionResetError):
                    client.recv(1)


async def test_a_reset_of_one_end_resets_the_other() -> None:
    async with pair() as ends:
        ends.server_writes.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD)
        ends.server_writes.transport.abort()
        with pytest.raises(ConnectionResetError):
            await ends.client_reads.read(1)


@pytest.mark.parametrize("side", ["client", "server"])
async def test_it_half_closes(side: str) -> None:
    async with pair() as ends:
        if side == "client":
            ends.relay.end_to_client()
            assert await ends.client_reads.read() == b""
            ends.client_writes.write(b"still")
            assert await ends.server_reads.readexactly(5) == b"still"
        else:
            ends.relay.end_to_server()
            assert await ends.server_reads.read() == b""
            ends.server_writes.write(b"still")
            assert await ends.client_reads.readexactly(5) == b"still"
