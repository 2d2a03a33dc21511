"""`fabric`, everything on by default: an async handler, or with --callbacks plain functions and no task."""

import asyncio

import rig

from fabric.config import CompressionConfig, ServerConfig
from fabric.message import Message
from fabric.server import ConnectedClient, WebSocketServer
from fabric_ext.writer import hold_back

arguments = rig.options()


async def echo(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(message)


async def echo_twice(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(message)
        await client.send(message)


async def everybody(client: ConnectedClient) -> None:
    async for message in client:
        await server.broadcast(message)


async def fan_out(client: ConnectedClient) -> None:
    for topic in next(subscribed):
        client.subscribe(topic)
    async for message in client:
        for topic in topics:
            server.publish(topic, message)


async def one_by_one(client: ConnectedClient) -> None:
    everyone.add(client)
    try:
        async for message in client:
            for _ in topics:
                for each in everyone:
                    each.send_nowait(message)
    finally:
        everyone.discard(client)


def on_message(client: ConnectedClient, message: Message) -> None:
    client.send_nowait(message)


def on_message_twice(client: ConnectedClient, message: Message) -> None:
    client.send_nowait(message)
    client.send_nowait(message)


everyone: set[ConnectedClient] = set()
topics, subscribed = rig.published(arguments), rig.subscribed(arguments)

#: The setting that docs/guide/compress.md gives for fewer bytes.
smallest = CompressionConfig(level=6, server_max_window_bits=15, client_max_window_bits=15)

config = ServerConfig(
    "127.0.0.1:0",
    ssl=rig.tls_context(arguments),
    busy_poll=arguments.busy_poll,
    compression=smallest if arguments.smallest else CompressionConfig(),
)
if arguments.callbacks:
    server = WebSocketServer(config, on_message=on_message_twice if arguments.twice else on_message)
elif arguments.broadcast:
    server = WebSocketServer(config, handler=everybody)
elif topics:
    server = WebSocketServer(config, handler=one_by_one if arguments.one_by_one else fan_out)
else:
    server = WebSocketServer(config, handler=echo_twice if arguments.twice else echo)


async def main() -> None:
    # What is sent within 50 µs may be gathered: under an instrument that is as many microseconds more.
    patience = hold_back(asyncio.get_running_loop(), 50_000 * arguments.slowed_down)
    await server.start()
    rig.announce(server.port)
    await asyncio.Future()
    del patience


rig.run(main)
