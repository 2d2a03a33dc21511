"""Starlette: see `test_frameworks`."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket


async def echo(websocket: WebSocket) -> None:
    await websocket.accept("chat" if "chat" in websocket.scope["subprotocols"] else None)
    while (event := await websocket.receive())["type"] == "websocket.receive":
        text, data = event.get("text"), event.get("bytes")
        if text is None:
            await websocket.send_bytes(data or b"")
        elif text.startswith("close "):
            code, reason = text.split(" ", 2)[1:]
            await websocket.close(int(code), reason)
            return
        else:
            await websocket.send_text(text)


async def denied(websocket: WebSocket) -> None:
    raise HTTPException(401, "who are you?", headers={"WWW-Authenticate": "Bearer"})


app = Starlette(routes=[WebSocketRoute("/echo", echo), WebSocketRoute("/denied", denied)])
