"""Part 3 of the tutorial: the rooms on several processes, with TLS, limits, a health check, settings from outside."""

import os
import ssl

from fabric import RateLimitConfig, Request, Response, ServerConfig, WebSocketServer, workers
from rooms import make_server, page


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


def main(worker: workers.Worker) -> WebSocketServer:
    """The server of one process."""
    config = ServerConfig(
        sock=worker.sockets,
        ssl=tls(),
        origins=os.environ["ORIGIN"].split() if "ORIGIN" in os.environ else None,  # whose pages may connect
        max_message_size=4096,
        max_connections_per_ip=20,
        rate_limit=RateLimitConfig(messages_per_second=5, messages_burst=20),
    )
    return make_server(config, answer, worker.broker)


if __name__ == "__main__":
    workers.run(
        main,
        int(os.environ.get("WORKERS", "2")),
        bind=os.environ.get("BIND", "127.0.0.1:8080"),
        broker=os.environ.get("BROKER", "nats:embedded"),
    )
