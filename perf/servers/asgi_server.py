"""An ASGI application under uvicorn, with one of its WebSocket implementations or fabric's; all else as by default."""

import argparse
import resource
import socket
from typing import Any

import rig
import uvicorn

FABRIC = "fabric.asgi:WebSocketProtocol"

parser = argparse.ArgumentParser()
parser.add_argument("--ws", default=FABRIC, help="uvicorn's name of a WebSocket implementation, or a class")
parser.add_argument("--fastapi", action="store_true", help="a FastAPI application instead of a bare one")
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


hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
config = uvicorn.Config(
    by_fastapi() if arguments.fastapi else bare,
    ws=arguments.ws,
    loop="uvloop",
    lifespan="off",
    interface="asgi3",
    log_level="warning",
)
rig.announce(listening.getsockname()[1])
uvicorn.Server(config).run(sockets=[listening])
