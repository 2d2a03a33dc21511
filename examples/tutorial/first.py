"""Part 1 of the tutorial: a server, and a page in the browser that speaks with it."""

from pathlib import Path

import fabric
from fabric import ConnectedClient, Request, Response, WebSocketServer

PAGE = Path(__file__).with_name("first.html")


async def handler(client: ConnectedClient) -> None:
    """One connection: what it says, all connections get."""
    async for message in client:
        await client.server.broadcast(message.text)


def page(request: Request) -> Response | None:
    """Answer `/` with the page. None lets a request go on to become a WebSocket."""
    if request.path == "/":
        return Response(200, {"Content-Type": "text/html; charset=utf-8"}, PAGE.read_bytes())
    return None


if __name__ == "__main__":
    fabric.run(WebSocketServer.bind("127.0.0.1:8080", handler, process_request=page))
