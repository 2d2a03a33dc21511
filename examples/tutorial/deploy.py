"""Part 3 of the tutorial: the rooms with TLS, limits, a health check, and settings from the environment."""

import os
import ssl

import fabric
from fabric import RateLimitConfig, Request, Response, ServerConfig, WebSocketServer
from rooms import page, router


def tls() -> ssl.SSLContext | None:
    """TLS with the certificate that the environment names."""
    if "CERTIFICATE" not in os.environ:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(os.environ["CERTIFICATE"], os.environ["KEY"])
    return context


def answer(request: Request) -> Response | None:
    """Plain HTTP: the health check, and the page."""
    if request.path == "/health":
        return Response(200, body="ok\n")
    return page(request)


config = ServerConfig(
    os.environ.get("BIND", "127.0.0.1:8080"),
    ssl=tls(),
    origins=os.environ["ORIGIN"].split() if "ORIGIN" in os.environ else None,  # whose pages may connect
    max_message_size=4096,
    max_connections_per_ip=20,
    rate_limit=RateLimitConfig(messages_per_second=5, messages_burst=20),
)

if __name__ == "__main__":
    fabric.run(WebSocketServer(config, router, process_request=answer))
