"""A server: one handler per connection, a broadcast to all, plain HTTP on the same port, an orderly end.

python examples/basic_server.py
"""

import asyncio
import urllib.request

from fabric import ConnectedClient, Request, Response, WebSocketClient, WebSocketServer


async def handler(client: ConnectedClient) -> None:
    """Runs in a task of its own for each connection; when it returns, the connection is closed."""
    name = client.request.query.get("name", "nobody")
    await client.send(f"welcome, {name}")
    async for message in client:
        await client.send(f"{name} said {message.text!r}")


def process_request(request: Request) -> Response | None:
    """Sees every request before it becomes a WebSocket: answer it, or return None to go on."""
    if request.path == "/health":
        return Response(200, {"Content-Type": "text/plain"}, "ok")
    return None


async def visit(url: str, name: str, ready: asyncio.Barrier) -> list[str]:
    # Without auto_reconnect=False it would wait for the server to come back.
    async with WebSocketClient.connect(f"{url}?name={name}", auto_reconnect=False) as client:
        heard = []
        await client.send("good morning")
        async for message in client:  # until the server says goodbye
            heard.append(message.text)
            if len(heard) == 2:
                await ready.wait()
        heard.append(f"(closed with {client.close_code}: {client.close_reason})")
        return heard


async def main() -> None:
    server = WebSocketServer.bind("127.0.0.1:0", handler, process_request=process_request)
    await server.start()  # returns once it listens; `await server.serve_forever()` is the usual next line
    url = f"ws://127.0.0.1:{server.port}/"
    print(f"listening on {url}")

    ready = asyncio.Barrier(3)
    visits = [asyncio.create_task(visit(url, name, ready)) for name in ("Ada", "Grace")]
    await ready.wait()
    reached = await server.broadcast_text("the market opens")
    print(f"broadcast reached {reached} of {server.connection_count} clients")

    health = f"http://127.0.0.1:{server.port}/health"
    answer = await asyncio.to_thread(lambda: urllib.request.urlopen(health).read())
    print(f"GET /health answers {answer.decode()!r}, on the same port")

    await server.shutdown()  # closes every connection with 1001, going away
    for heard in await asyncio.gather(*visits):
        print("a client heard:", *heard, sep="\n  ")
    print(f"in all: {server.metrics.messages_received} messages in, {server.metrics.messages_sent} out")


if __name__ == "__main__":
    asyncio.run(main())
