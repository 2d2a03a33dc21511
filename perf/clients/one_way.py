"""How long a message takes through a broker: from its publication to a client of another server, or to a bare socket.

    one_way.py --broker nats://127.0.0.1:4222 --port 8080    this process publishes, and is a client of the server there
    one_way.py --broker nats://127.0.0.1:4222                what the broker takes by itself: two blocking sockets

One message at a time. Prints p50, p95 and p99 in ns as JSON.
"""

import argparse
import asyncio
import json
import socket
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


def bare() -> list[int]:
    """The broker alone."""
    parts = urlsplit(arguments.broker)
    speaks, hears = (socket.create_connection((parts.hostname, parts.port)) for _ in range(2))
    is_nats = parts.scheme == "nats"
    with speaks, hears:
        for each in (speaks, hears):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if is_nats:
                each.recv(65536)  # INFO
                each.sendall(b'CONNECT {"verbose":false}\r\n')
        if is_nats:
            hears.sendall(b"SUB way 1\r\nPING\r\n")
            command = b"PUB way %d\r\n%b\r\n" % (len(MESSAGE), MESSAGE)
        else:
            hears.sendall(b"SUBSCRIBE way\r\n")
            command = b"*3\r\n$7\r\nPUBLISH\r\n$3\r\nway\r\n$%d\r\n%b\r\n" % (len(MESSAGE), MESSAGE)
        hears.recv(65536)  # it has subscribed
        times, end = [], time.monotonic() + arguments.seconds
        while time.monotonic() < end or len(times) < 2 * WARM:
            begun = time.monotonic_ns()
            speaks.sendall(command)
            got = hears.recv(65536)
            while not got.endswith(MESSAGE + b"\r\n"):
                got += hears.recv(65536)
            times.append(time.monotonic_ns() - begun)
            if not is_nats:
                speaks.recv(65536)  # how many have heard it
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
        while True:  # until the other one has subscribed
            server.publish("everybody", MESSAGE)
            try:
                async with asyncio.timeout(0.1):
                    await client.recv()
                break
            except TimeoutError:
                continue
        await asyncio.sleep(0.1)
        while client.queued:
            await client.recv()
        times, end = [], time.monotonic() + arguments.seconds
        while time.monotonic() < end or len(times) < 2 * WARM:
            begun = time.monotonic_ns()
            server.publish("everybody", MESSAGE)
            await client.recv()
            times.append(time.monotonic_ns() - begun)
    return times


def measured() -> list[int]:
    if not arguments.port:
        return bare()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(served())


found = sorted(measured()[WARM:])
print(json.dumps({f"p{share}": found[len(found) * share // 100] for share in (50, 95, 99)}), flush=True)
