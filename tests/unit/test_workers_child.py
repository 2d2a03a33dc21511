"""A worker's life, in this process: what the parent says comes over a pair of sockets."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket

import pytest

from fabric import ConnectedClient, ServerConfig, WebSocketClient, WebSocketServer
from fabric._workers.channel import Channel
from fabric._workers.child import Goodbye, Order, Worker, _Life

pytestmark = pytest.mark.parametrize("loop_factory", ["asyncio"], indirect=True)

HOUR = 3600.0


def serving(worker: Worker) -> WebSocketServer:
    async def handler(client: ConnectedClient) -> None:
        async for _ in client:
            pass

    return WebSocketServer(ServerConfig(sock=worker.sockets), handler)


async def test_what_is_shown_of_a_worker_has_no_password() -> None:
    url = "nats://user:hunter2@host"
    order = Order({}, b"", 0, url, (), None, url, "asyncio", Goodbye(1001, HOUR))
    assert "hunter2" not in repr(Worker(0, (), url)) + repr(order)


async def test_what_comes_right_behind_the_end_counts(stack: contextlib.AsyncExitStack) -> None:
    """A worker that is replaced, and may drain for an hour, is told at the same time that all is to end."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    ours, theirs = socket.socketpair()
    order = Order({}, b"", 0, "memory:", (listening.detach(),), None, None, "asyncio", Goodbye(1001, HOUR))
    stack.callback(asyncio.get_running_loop().remove_signal_handler, signal.SIGTERM)
    life = asyncio.create_task(_Life(order, serving).run(theirs))
    channel = await Channel.open(ours)
    stack.push_async_callback(channel.close)
    assert await channel.receive() == {"event": "ready"}
    client = await stack.enter_async_context(WebSocketClient.connect(f"ws://127.0.0.1:{port}/", auto_reconnect=False))
    channel.send(event="end", goodbye=Goodbye(1012, HOUR, HOUR))
    channel.send(event="end", goodbye=Goodbye(1001, HOUR))
    assert await client.recv() is None
    assert client.close_code == 1001
    assert await life == 0
