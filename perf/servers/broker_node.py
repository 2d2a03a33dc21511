"""One of two servers that share a broker: what its clients send, the other publishes N times to everybody.

The first message of a client comes back to it once it has subscribed.

    broker_node.py --layer fabric --broker nats://127.0.0.1:4222             the one with the clients, which is measured
    broker_node.py --layer fabric --broker nats://127.0.0.1:4222 --times 32  the other

With --layer core or pubsub, those of channels_redis, the WebSockets are those of `fabric` too, and each connection is a
consumer of the channel layer. With --layer socketio it is python-socketio with its Redis manager under uvicorn, and
clients speak Socket.IO.
"""

import argparse
import asyncio
import contextlib
from typing import Any

import rig

from fabric.config import ServerConfig
from fabric.server import ConnectedClient, WebSocketServer

parser = argparse.ArgumentParser()
parser.add_argument("--layer", choices=("fabric", "core", "pubsub", "socketio"), required=True)
parser.add_argument("--broker", required=True)
parser.add_argument("--times", type=int, default=0)
arguments = parser.parse_args()


async def node() -> None:
    """fabric: one subscription of the server, and all its clients."""

    async def handler(client: ConnectedClient) -> None:
        await client.subscribe("everybody")
        await client.send(await client.recv())  # which says that it may begin
        async for message in client:
            server.publish("trigger", message)

    server = WebSocketServer(ServerConfig("127.0.0.1:0"), handler, broker=arguments.broker)
    async with server:
        if arguments.times:
            async with server.topic("trigger") as listener:
                rig.announce(server.port)
                async for message in listener:
                    for _ in range(arguments.times):
                        server.publish("everybody", message)
        await server.topics.broker.flush()
        rig.announce(server.port)
        await asyncio.Future()


async def channel_node() -> None:
    """A channel layer: a consumer for each client."""
    layer: Any
    if arguments.layer == "core":
        from channels_redis.core import RedisChannelLayer

        # It waits 5 s at a time for a message, as long as redis-py from version 8 on waits for any reply by default:
        # then receive() raises TimeoutError in the first pause of 5 s, as there is while other peers are measured.
        host = {"address": arguments.broker, "socket_timeout": None}
        layer = RedisChannelLayer(hosts=[host], capacity=100_000)
    else:
        from channels_redis.pubsub import RedisPubSubChannelLayer

        layer = RedisPubSubChannelLayer(hosts=[arguments.broker])

    async def consume(client: ConnectedClient, channel: str) -> None:
        while True:
            message = await layer.receive(channel)
            await client.send(message["data"])

    async def handler(client: ConnectedClient) -> None:
        channel = await layer.new_channel()
        await layer.group_add("everybody", channel)
        await client.send(await client.recv())  # which says that it may begin
        consuming = asyncio.create_task(consume(client, channel))
        try:
            async for message in client:
                await layer.group_send("trigger", {"type": "x", "data": message.as_bytes()})
        finally:
            consuming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await consuming

    async with WebSocketServer(ServerConfig("127.0.0.1:0"), handler) as server:
        if arguments.times:
            channel = await layer.new_channel()
            await layer.group_add("trigger", channel)
            rig.announce(server.port)
            while True:
                message = await layer.receive(channel)
                for _ in range(arguments.times):
                    await layer.group_send("everybody", message)
        rig.announce(server.port)
        await asyncio.Future()


async def socketio_node() -> None:
    """A room; what is emitted to it elsewhere comes by the manager."""
    import redis.asyncio
    import socketio
    import uvicorn

    connection = redis.asyncio.from_url(arguments.broker)
    manager = socketio.AsyncRedisManager(arguments.broker, write_only=bool(arguments.times))
    if arguments.times:
        pubsub = connection.pubsub()
        await pubsub.subscribe("trigger")
        rig.announce(1)  # it has no clients
        async for told in pubsub.listen():
            for _ in range(arguments.times if told["type"] == "message" else 0):
                await manager.emit("m", told["data"].decode(), room="everybody")

    io = socketio.AsyncServer(async_mode="asgi", client_manager=manager, transports=["websocket"], ping_interval=600)

    @io.event  # type: ignore[untyped-decorator]
    async def connect(sid: str, _: Any) -> None:
        await io.enter_room(sid, "everybody")

    @io.on("m")  # type: ignore[untyped-decorator]
    async def trigger(_: str, data: str) -> None:
        await connection.publish("trigger", data)

    config = uvicorn.Config(socketio.ASGIApp(io, socketio_path="/"), port=0, log_level="error", ws_max_queue=1024)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    rig.announce(server.servers[0].sockets[0].getsockname()[1])
    await serving


rig.run({"fabric": node, "socketio": socketio_node}.get(arguments.layer, channel_node))
