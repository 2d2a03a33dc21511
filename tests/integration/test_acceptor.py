"""`fabric._handshake.acceptor`: what is said when descriptors or memory run out, and that it accepts again."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fabric import ServerConfig, WebSocketServer
from fabric._server.handover import HandoverSocket
from support.fake_time import in_fake_time, settle
from support.serving import echo


class Door(HandoverSocket):
    """A listening socket, at which a byte stands for each client; `room` is how many descriptors there are."""

    def __init__(self) -> None:
        here, self._outside = socket.socketpair()
        self.room = 0
        self.clients: list[socket.socket] = []
        super().__init__(here.detach(), "door", socket.AF_UNIX)

    def come(self, count: int) -> None:
        self._outside.send(bytes(count))

    def accept(self) -> tuple[socket.socket, str]:
        self.recv(1, socket.MSG_PEEK)
        if not self.room:
            raise OSError(errno.EMFILE, "Too many open files")
        self.room -= 1
        self.recv(1)
        client, accepted = socket.socketpair()
        self.clients.append(client)
        return accepted, "a client"

    def close(self) -> None:
        self._outside.close()
        super().close()


@asynccontextmanager
async def serving(*doors: Door) -> AsyncIterator[None]:
    config = ServerConfig(sock=doors, handshake_timeout=1000)
    async with WebSocketServer(config, echo):
        yield
    for door in doors:
        for client in door.clients:
            client.close()


async def second() -> None:
    await asyncio.sleep(1)
    await settle()


@in_fake_time
async def test_a_shortage_is_said_once_then_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """On however many sockets."""
    caplog.set_level("INFO", "fabric")
    doors = Door(), Door()
    async with serving(*doors):
        caplog.clear()
        for door in doors:
            door.come(1)
        await settle()
        assert caplog.messages == ["no connection can be accepted: Too many open files; those who come have to wait"]
        for number in range(1, 4):
            await second()
            assert caplog.messages[number:] == [f"for {number} s connections have had to wait: Too many open files"]
        caplog.clear()
        for door in doors:
            door.room = 100
        await second()
        assert [len(door.clients) for door in doors] == [1, 1]
        await second()
        assert caplog.messages == ["connections are accepted again"]


@in_fake_time
async def test_one_that_comes_and_goes_is_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fabric")
    door = Door()
    async with serving(door):
        caplog.clear()
        door.come(12)
        await settle()
        for _ in range(10):
            door.room = 1
            await second()
        assert len(door.clients) == 10
        assert len(caplog.messages) == 11
        assert "connections are accepted again" not in caplog.messages


@in_fake_time
async def test_it_accepts_again_although_the_log_raises(broken_log: list[str]) -> None:
    door = Door()
    async with serving(door):
        door.come(2)
        await settle()
        door.room = 1
        await second()
        door.room = 1
        await second()
        await second()
        assert len(door.clients) == 2
    assert "connections are accepted again" in broken_log
