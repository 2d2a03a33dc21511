"""A server as it is deployed. The files beside this one start it: systemd, Docker, Kubernetes, nginx, HAProxy.

    BIND=127.0.0.1:8080 python app.py

It echoes. GET /health answers 200 while the process works, GET /ready while it takes more connections. SIGTERM ends it
in good order: each connection is closed with 1001, and the exit code is 0.
"""

import logging
import os

import fabric
from fabric import ConnectedClient, Request, Response, ServerConfig, WebSocketServer


async def handler(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(message)


def answer(request: Request) -> Response | None:
    """Plain HTTP; None is a WebSocket."""
    if request.path == "/health":
        return Response(200, body="ok\n")
    if request.path == "/ready":
        free = server.config.max_connections - server.connection_count
        return Response(200 if free > 0 else 503, body=f"{free} connections are free\n")
    return None


server = WebSocketServer(
    ServerConfig(
        os.environ.get("BIND", "127.0.0.1:8080"),
        max_connections=int(os.environ.get("MAX_CONNECTIONS", "10000")),
        proxy_protocol=os.environ.get("PROXIES", "").split(),  # addresses of proxies that send the PROXY header
    ),
    handler,
    process_request=answer,
)

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    fabric.run(server)
