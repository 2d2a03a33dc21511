"""An ASGI application under uvicorn, with one of its WebSocket implementations or fabric's; all else as by default."""

import argparse
import asyncio
import socket
from typing import Any

import rig
import uvicorn

from fabric_ext.writer import hold_back

FABRIC = "fabric.asgi:WebSocketProtocol"

parser = argparse.ArgumentParser()
parser.add_argument("--ws", default=FABRIC, help="uvicorn's name of a WebSocket implementation, or a class")
parser.add_argument("--fastapi", action="store_true", help="a FastAPI application instead of a bare one")
parser.add_argument("--slowed-down", type=int, default=1, metavar="N", help="as for the other servers: see rig.py")
arguments = parser.parse_args()


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Echo, by the protocol itself."""
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": event["bytes"]})


def by_fastapi() -> Any:
    """Echo, as FastAPI's documentation shows it."""
    import fastapi

    app = fastapi.FastAPI()

    @app.websocket("/")
    async def echo(websocket: fastapi.WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_bytes(await websocket.receive_bytes())
        except fastapi.WebSocketDisconnect:
            pass

    return app


listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
config = uvicorn.Config(
    by_fastapi() if arguments.fastapi else bare,
    ws=arguments.ws,
    lifespan="off",
    interface="asgi3",
    log_level="warning",
)


async def main() -> None:
    # What is sent within 50 µs may be gathered: under an instrument that is as many microseconds more.
    patience = hold_back(asyncio.get_running_loop(), 50_000 * arguments.slowed_down)
    rig.announce(listening.getsockname()[1])
    await uvicorn.Server(config).serve(sockets=[listening])
    del patience


rig.run(main)
