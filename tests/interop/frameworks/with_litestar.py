"""Litestar: see `test_frameworks`."""

from typing import Any

from litestar import Litestar, WebSocket, websocket
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException
from litestar.handlers import BaseRouteHandler


@websocket("/echo")
async def echo(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept(subprotocols="chat" if "chat" in socket.scope["subprotocols"] else None)
    while (event := await socket.receive())["type"] == "websocket.receive":
        text, data = event.get("text"), event.get("bytes")
        if text is None:
            await socket.send_bytes(data or b"")
        elif text.startswith("close "):
            code, reason = text.split(" ", 2)[1:]
            await socket.close(int(code), reason)
            return
        else:
            await socket.send_text(text)


def refuse(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    raise NotAuthorizedException


@websocket("/denied", guards=[refuse])
async def denied(socket: WebSocket[Any, Any, Any]) -> None:
    raise AssertionError("the guard has let it pass")


app = Litestar([echo, denied], openapi_config=None)
