"""Connections that go from the process that accepts them to those that serve them: both ends, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator
from typing import Self

import pytest

from fabric import ServerConfig, WebSocketClient, WebSocketServer
from fabric._server.handover import AT_ONCE, CLOSED, Handover, HandoverSocket
from fabric._workers.balance import MAX_UNRECEIVED, Balancer

Stack = contextlib.AsyncExitStack


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def other_end(handover: Handover, listening: socket.socket) -> HandoverSocket:
    """What the other process makes of it."""
    return HandoverSocket(handover.take_other_end().detach(), listening.getsockname(), listening.family)


def connection(listening: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A client, and the connection that was accepted."""
    client = socket.create_connection(listening.getsockname())
    return client, listening.accept()[0]


def test_a_connection_goes_over_and_is_counted(listening: socket.socket) -> None:
    handover = Handover()
    end = other_end(handover, listening)
    assert (end.family, end.getsockname()) == (listening.family, listening.getsockname())
    with pytest.raises(BlockingIOError):
        end.accept()
    client, accepted = connection(listening)
    with client:
        assert handover.hand(accepted)
        assert (handover.count, handover.unreceived) == (1, 1)
        received, address = end.accept()
        assert address == client.getsockname()
        assert not received.get_inheritable()
        assert handover.read() == []
        assert (handover.count, handover.unreceived) == (1, 0)
        assert accepted.fileno() == -1
        received.sendall(b"hello")
        assert client.recv(10) == b"hello"
        received.close()
        received.close()
        assert handover.read() == []
        assert handover.count == 0
        assert client.recv(10) == b""
    end.close()
    assert handover.close() == []


def test_letting_go_of_a_descriptor_is_closing(listening: socket.socket) -> None:
    handover = Handover()
    end = other_end(handover, listening)
    client, accepted = connection(listening)
    handover.hand(accepted)
    received, _ = end.accept()
    os.close(received.detach())
    handover.read()
    assert handover.count == 0
    client.close()
    end.close()
    handover.close()


def test_what_was_not_received_comes_back(listening: socket.socket) -> None:
    handover = Handover()
    end = other_end(handover, listening)
    pairs = [connection(listening) for _ in range(3)]
    for _, accepted in pairs:
        handover.hand(accepted)
    received, _ = end.accept()
    end.close()  # as when its process is killed
    left = handover.close()
    assert left == [accepted for _, accepted in pairs[1:]]
    left[0].sendall(b"hello")
    assert pairs[1][0].recv(10) == b"hello"
    for sock in (received, *left, *(client for client, _ in pairs)):
        sock.close()


def test_the_end_comes_behind_what_is_on_its_way(listening: socket.socket) -> None:
    handover = Handover()
    end = other_end(handover, listening)
    ends: list[bool] = []
    end.on_end = lambda: ends.append(True)
    client, accepted = connection(listening)
    handover.hand(accepted)
    handover.finish()
    received, _ = end.accept()
    assert not ends
    with pytest.raises(EOFError):
        end.accept()
    assert ends == [True]
    for sock in (client, received, end):
        sock.close()
    handover.close()


def test_a_client_that_has_gone_meanwhile(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    handover = Handover()
    end = other_end(handover, listening)
    client, accepted = connection(listening)
    handover.hand(accepted)

    def gone(self: socket.socket) -> None:
        raise OSError(errno.ENOTCONN, "not connected")

    monkeypatch.setattr("fabric._server.handover.HandedConnection.getpeername", gone, raising=False)
    with pytest.raises(ConnectionAbortedError):
        end.accept()
    handover.read()
    assert handover.count == 0
    client.close()
    end.close()
    handover.close()


def test_without_a_descriptor_it_goes_back(listening: socket.socket) -> None:
    """The system drops the descriptor for which there is no room; this end has kept its own."""
    handover = Handover()
    end = other_end(handover, listening)
    client, accepted = connection(listening)
    handover.hand(accepted)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            end.accept()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert handover.read() == [accepted]
    assert handover.count == 0
    for sock in (client, accepted, end):
        sock.close()
    handover.close()


def test_at_the_end_all_is_read_that_was_said(listening: socket.socket) -> None:
    """More than is read at a time: what was received is not closed, or handed to another one, once more."""
    handover = Handover()
    end = other_end(handover, listening)
    client, accepted = connection(listening)
    handover.hand(accepted)
    assert end.send(CLOSED * (AT_ONCE + 1)) == AT_ONCE + 1
    received, _ = end.accept()
    end.close()
    assert handover.close() == []
    for sock in (client, received):
        sock.close()


async def test_what_found_no_room_is_said_later(listening: socket.socket) -> None:
    handover = Handover()
    end = other_end(handover, listening)
    client, accepted = connection(listening)
    handover.hand(accepted)
    with pytest.raises(BlockingIOError):
        while True:
            end.send(CLOSED * 1024)
    received, _ = end.accept()
    while handover.unreceived:  # nothing else is said
        assert handover.read() == []
        await asyncio.sleep(0)
    for sock in (client, received, end):
        sock.close()
    assert handover.close() == []


# The process that accepts: as the parent of workers it is on asyncio's own loop.

on_asyncio = pytest.mark.parametrize("loop_factory", ["asyncio"], indirect=True)


class Workers:
    """A balancer with ends of its own, in place of other processes."""

    def __init__(self, count: int, listening: socket.socket) -> None:
        listening.setblocking(False)
        self.address = listening.getsockname()
        self.balancer = Balancer([listening.dup()])
        self.handovers = [Handover() for _ in range(count)]
        self.ends = [other_end(handover, listening) for handover in self.handovers]
        self.received: list[list[socket.socket]] = [[] for _ in range(count)]
        self.clients: list[socket.socket] = []
        for handover in self.handovers:
            self.balancer.add(handover)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.balancer.close()
        for handover in self.handovers:
            self.balancer.remove(handover)
        for sock in [*self.clients, *self.ends, *(each for some in self.received for each in some)]:
            sock.close()

    async def come(self, count: int = 1) -> None:
        """Clients connect, and are handed over."""
        for _ in range(count):
            before = self.on_their_way()
            client = socket.socket()
            client.setblocking(False)
            self.clients.append(client)
            await asyncio.get_running_loop().sock_connect(client, self.address)
            while self.on_their_way() == before:
                await asyncio.sleep(0)

    def on_their_way(self) -> int:
        return sum(handover.count for handover in self.handovers)

    async def receive(self, number: int) -> None:
        """One worker takes all that it was handed, and says so."""
        while True:
            try:
                self.received[number].append(self.ends[number].accept()[0])
            except BlockingIOError:
                break
        while self.handovers[number].unreceived:
            await asyncio.sleep(0)

    @property
    def counts(self) -> list[int]:
        return [handover.count for handover in self.handovers]


@on_asyncio
async def test_the_one_with_the_fewest_gets_the_next(listening: socket.socket) -> None:
    with Workers(3, listening) as three:
        await three.come(9)
        assert three.counts == [3, 3, 3]
        await three.receive(1)
        for sock in three.received[1]:
            sock.close()
        while three.counts[1]:
            await asyncio.sleep(0)
        await three.come(3)
        assert three.counts == [3, 3, 3]


@on_asyncio
async def test_what_a_worker_has_not_received_when_it_ends_goes_to_others(listening: socket.socket) -> None:
    with Workers(2, listening) as two:
        await two.come(4)
        two.ends[0].close()
        while two.counts != [0, 4]:  # the balancer notices by itself
            await asyncio.sleep(0)
        await two.come()
        assert two.counts == [0, 5]


@on_asyncio
async def test_one_that_is_retired_gets_no_more(listening: socket.socket) -> None:
    with Workers(2, listening) as two:
        await two.come(2)
        two.balancer.retire(two.handovers[0])
        await two.come(2)
        assert two.counts == [1, 3]
        two.received[0].append(two.ends[0].accept()[0])
        with pytest.raises(EOFError):
            two.ends[0].accept()


@on_asyncio
async def test_a_worker_that_stands_still_gets_no_more_than_so_many(listening: socket.socket) -> None:
    """Then those that come wait in the system's queue, until it goes on."""
    with Workers(1, listening) as one:
        await one.come(MAX_UNRECEIVED)
        late = socket.socket()
        late.setblocking(False)
        one.clients.append(late)
        await asyncio.get_running_loop().sock_connect(late, one.address)
        for _ in range(10):
            await asyncio.sleep(0)
        assert one.counts == [MAX_UNRECEIVED]
        await one.receive(0)
        while one.counts != [MAX_UNRECEIVED + 1]:
            await asyncio.sleep(0)


@on_asyncio
async def test_without_workers_connections_wait(listening: socket.socket) -> None:
    with Workers(1, listening) as one:
        one.balancer.retire(one.handovers[0])
        client = socket.socket()
        client.setblocking(False)
        one.clients.append(client)
        await asyncio.get_running_loop().sock_connect(client, one.address)
        new = Handover()
        end = other_end(new, listening)
        one.handovers.append(new)
        one.ends.append(end)
        one.received.append([])
        one.balancer.add(new)
        while not new.count:
            await asyncio.sleep(0)


@on_asyncio
async def test_what_the_only_worker_has_not_received_when_it_ends_waits_for_the_next(
    listening: socket.socket,
) -> None:
    with Workers(1, listening) as one:
        await one.come(3)
        one.ends[0].close()
        while one.handovers[0].fileno() >= 0:  # the balancer notices by itself
            await asyncio.sleep(0)
        new = Handover()
        one.handovers.append(new)
        one.ends.append(other_end(new, listening))
        one.received.append([])
        one.balancer.add(new)
        assert new.count == 3
        await one.receive(1)
        addresses = [client.getsockname() for client in one.clients]
        assert [received.getpeername() for received in one.received[1]] == addresses
        await one.come()
        assert new.count == 4


@on_asyncio
async def test_what_waits_for_a_worker_is_closed_with_the_balancer(listening: socket.socket) -> None:
    with Workers(1, listening) as one:
        await one.come()
        one.ends[0].close()
        while one.handovers[0].fileno() >= 0:
            await asyncio.sleep(0)
        one.balancer.close()
        assert await asyncio.get_running_loop().sock_recv(one.clients[0], 1) == b""


@on_asyncio
async def test_a_pause_for_want_of_descriptors_lasts(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker says of its connections does not end it. A new worker does."""
    with Workers(1, listening) as one:
        await one.come()
        attempts = []

        def none_left(self: socket.socket) -> tuple[socket.socket, object]:
            attempts.append(self)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr("fabric._workers.balance.RETRY", 3600.0)
        with monkeypatch.context() as patched:
            patched.setattr(socket.socket, "accept", none_left)
            client = socket.socket()
            client.setblocking(False)
            one.clients.append(client)
            await asyncio.get_running_loop().sock_connect(client, one.address)
            while not attempts:
                await asyncio.sleep(0)
        await one.receive(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert one.counts == [1]
        new = Handover()
        one.handovers.append(new)
        one.ends.append(other_end(new, listening))
        one.received.append([])
        one.balancer.add(new)
        while one.counts != [1, 1]:
            await asyncio.sleep(0)


# A server takes the other end for a socket.


async def test_a_server_on_the_other_end(stack: Stack, listening: socket.socket) -> None:
    handover = Handover()

    async def handler(client: object) -> None:
        async for message in client:  # type: ignore[attr-defined]
            await client.send(message)  # type: ignore[attr-defined]

    server = WebSocketServer(ServerConfig(sock=other_end(handover, listening)), handler)
    await stack.enter_async_context(server)
    assert server.port == listening.getsockname()[1]
    connecting = asyncio.ensure_future(
        WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", auto_reconnect=False).__aenter__()
    )
    listening.setblocking(False)
    while True:
        try:
            accepted, _ = listening.accept()
            break
        except BlockingIOError:
            await asyncio.sleep(0)
    assert handover.hand(accepted)
    client = await connecting
    await client.send("hello")
    message = await client.recv()
    assert message is not None
    assert message.text == "hello"
    handover.read()
    assert (handover.count, handover.unreceived) == (1, 0)
    await client.close()
    while handover.count:
        await asyncio.sleep(0)
        handover.read()
    await server.shutdown()
    handover.close()
