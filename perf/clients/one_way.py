"""How long a message takes through a broker: from its publication to a client of another server, or by itself.

    one_way.py --broker nats://127.0.0.1:4222 --port 8080    this process publishes, and is a client of the server there
    one_way.py --broker nats://127.0.0.1:4222                what the broker takes by itself

One message at a time; in both cases one event loop publishes and receives. Prints p50, p95 and p99 in ns as JSON.
"""

import argparse
import asyncio
import json
import time
from urllib.parse import urlsplit

import uvloop

from fabric.client import WebSocketClient
from fabric.config import ClientConfig, ServerConfig
from fabric.server import ConnectedClient, WebSocketServer

MESSAGE = bytes(range(65, 65 + 64)) * 2  # 128 B
WARM = 200  # messages that do not count
parser = argparse.ArgumentParser()
parser.add_argument("--broker", required=True)
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--seconds", type=float, default=1.0)
arguments = parser.parse_args()


class Bare(asyncio.Protocol):
    """A connection to the broker, without a library."""

    def __init__(self) -> None:
        self.expected = b""
        self.got = b""
        self.come: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.got += data
        if self.got.endswith(self.expected) and not self.come.done():
            self.come.set_result(None)

    async def answer(self, end: bytes) -> None:
        """Wait until what has come since ends so."""
        self.expected = end
        if not self.got or not self.got.endswith(end):
            self.come = asyncio.get_running_loop().create_future()
            await self.come
        self.got = b""


async def bare() -> list[int]:
    """The broker's own way, between two connections on one event loop."""
    parts = urlsplit(arguments.broker)
    loop = asyncio.get_running_loop()
    (speaking, speaks), (hearing, hears) = [
        await loop.create_connection(Bare, parts.hostname, parts.port) for _ in range(2)
    ]
    is_nats = parts.scheme == "nats"
    if is_nats:
        for transport, protocol in ((speaking, speaks), (hearing, hears)):
            transport.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
            await protocol.answer(b"PONG\r\n")
        hearing.write(b"SUB way 2\r\nPING\r\n")
        await hears.answer(b"PONG\r\n")
        command = b"PUB way %d\r\n%b\r\n" % (len(MESSAGE), MESSAGE)
    else:
        hearing.write(b"SUBSCRIBE way\r\n")
        await hears.answer(b":1\r\n")
        command = b"*3\r\n$7\r\nPUBLISH\r\n$3\r\nway\r\n$%d\r\n%b\r\n" % (len(MESSAGE), MESSAGE)
    times, end = [], time.monotonic() + arguments.seconds
    while time.monotonic() < end or len(times) < 2 * WARM:
        begun = time.monotonic_ns()
        speaking.write(command)
        await hears.answer(MESSAGE + b"\r\n")
        times.append(time.monotonic_ns() - begun)
        if not is_nats:
            await speaks.answer(b":1\r\n")  # how many have heard it
    speaking.close()
    hearing.close()
    return times


async def served() -> list[int]:
    """A server publishes; another one, in a process of its own, has the client."""

    async def handler(client: ConnectedClient) -> None:
        await client.wait_closed()

    config = ClientConfig(f"ws://127.0.0.1:{arguments.port}/", auto_reconnect=False)
    async with (
        WebSocketServer(ServerConfig("127.0.0.1:0"), handler, broker=arguments.broker) as server,
        WebSocketClient.connect(config) as client,
    ):
        await client.send("ready")
        await client.recv()
        times, end = [], time.monotonic() + arguments.seconds
        while time.monotonic() < end or len(times) < 2 * WARM:
            begun = time.monotonic_ns()
            server.publish("everybody", MESSAGE)
            await client.recv()
            times.append(time.monotonic_ns() - begun)
    return times


with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    found = sorted(runner.run(served() if arguments.port else bare())[WARM:])
print(json.dumps({f"p{share}": found[len(found) * share // 100] for share in (50, 95, 99)}), flush=True)
