"""Ends that are nobody's fault leave no error in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.error import ConnectionClosed
from fabric.message import Message
from fabric.server import ConnectedClient
from support.raw_peer import RawPeer, request
from support.serving import serve, until

Stack = contextlib.AsyncExitStack


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing at WARNING or above, in the whole test."""
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_reader_and_writer_in_a_task_group(stack: Stack, end: str) -> None:
    done = asyncio.Event()

    async def handler(client: ConnectedClient) -> None:
        async def read() -> None:
            while await client.recv() is not None:
                pass
            done.set()

        async def write() -> None:
            while True:
                await client.send("tick")
                await asyncio.sleep(0)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(read())
                group.create_task(write())
        finally:
            done.set()

    server = await serve(stack, handler)
    async with await RawPeer.open(server.port) as peer:
        await peer.payload()
        if end == "close":
            peer.send_close()
        else:
            peer.reset()
        await done.wait()
    await until(lambda: not server.connection_count)


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_a_callback_that_echoes_while_the_server_shuts_down(stack: Stack, kind: str) -> None:
    got = 0

    def plain(client: ConnectedClient, message: Message) -> None:
        nonlocal got
        got += 1
        client.send_nowait(message)

    async def coroutine(client: ConnectedClient, message: Message) -> None:
        nonlocal got
        got += 1
        await client.send(message)

    server = await serve(stack, on_message=plain if kind == "plain" else coroutine)
    async with await RawPeer.open(server.port) as peer:
        peer.send_text("before")
        assert await peer.payload() == b"before"
        stopping = asyncio.create_task(server.shutdown(timeout=3))
        assert await peer.close_seen() == (1001, "server shutdown")
        peer.send_text("late")
        peer.send_text("later")
        peer.send_close(1001)
        await stopping
        assert (await peer.rest()) == []
    if kind == "plain":
        assert got == 3
    assert server.metrics.receive_errors == 0


async def test_a_clients_callback_that_answers_while_it_closes(stack: Stack) -> None:
    last = asyncio.Event()

    async def handler(server_side: ConnectedClient) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                server_side.send_nowait("tick")
                await asyncio.sleep(0)

    def answer(client: WebSocketClient, message: Message) -> None:
        last.set()
        client.send_nowait(message)

    server = await serve(stack, handler)
    client = await WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", on_message=answer)
    await last.wait()
    await client.close()
    assert client.close_code == 1000


async def test_a_greeting_to_a_client_that_has_left(stack: Stack) -> None:
    left = asyncio.Event()

    async def greet(client: ConnectedClient) -> None:
        await client.wait_closed()
        left.set()
        await client.send("hello")  # raises ConnectionClosed, which is not logged: see `quiet`

    server = await serve(stack, on_connect=greet, on_message=lambda *_: None)
    async with await RawPeer.open(server.port) as peer:
        peer.send_close()
        await left.wait()


@pytest.mark.parametrize("options", [{}, {"max_connections_per_ip": 3}], ids=["any", "limited"])
async def test_a_reset_right_after_the_request(stack: Stack, options: dict[str, Any]) -> None:
    addresses: list[Any] = []

    async def handler(client: ConnectedClient) -> None:
        addresses.append(client.remote_addr)
        await client.wait_closed()

    server = await serve(stack, handler, **options)
    for _ in range(20):
        peer = await RawPeer.connect(server.port)
        peer.send(request())
        peer.reset()
    async with await RawPeer.open(server.port):
        await until(lambda: server.connection_count == 1)
    assert all(address and address[0] == "127.0.0.1" for address in addresses)
