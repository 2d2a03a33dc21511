"""An echo server that watches its connections while they live.

python examples/echo_server.py                   three clients for two seconds, then it ends
python examples/echo_server.py 127.0.0.1:8080    serves until Ctrl-C
"""

import asyncio
import sys
import time

import fabric
from fabric import ConnectedClient, Error, Message, WebSocketClient, WebSocketServer

PERIOD = 0.5  # seconds between two looks at the connections


def on_message(client: ConnectedClient, message: Message) -> None:
    """A plain function, called right where a message arrives: the fastest way to answer one."""
    client.send_nowait(message)


def on_connect(client: ConnectedClient) -> None:
    print(f"+ {str(client.id)[:8]} from {client.remote_addr}")


def on_disconnect(client: ConnectedClient) -> None:
    print(f"- {str(client.id)[:8]} closed with {client.close_code} after {client.messages_received} messages")


async def round_trip(client: ConnectedClient) -> str:
    try:
        async with asyncio.timeout(1):
            return f"{await client.ping() * 1e6:,.0f} µs"
    except (Error, TimeoutError):
        return "no answer"


async def monitor(server: WebSocketServer) -> None:
    """Print what each connection has done since the last look."""
    before: dict[ConnectedClient, int] = {}
    while True:
        await asyncio.sleep(PERIOD)
        clients = server.clients()
        if not clients:
            continue
        trips = await asyncio.gather(*map(round_trip, clients))
        print(f"{'connection':<12}{'messages/s':>12}{'received':>12}{'sent':>12}{'ping':>12}")
        for client, trip in zip(clients, trips, strict=True):
            rate = (client.messages_received - before.get(client, 0)) / PERIOD
            row = (f"{rate:,.0f}", f"{client.messages_received:,}", f"{client.messages_sent:,}", trip)
            print(f"{str(client.id)[:8]:<12}" + "".join(f"{cell:>12}" for cell in row))
        before = {client: client.messages_received for client in clients}


async def chatter(url: str, pause: float) -> None:
    """Two seconds of a client that sends, waits for the echo, and rests a little."""
    async with WebSocketClient.connect(url) as client:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            await client.send("tick")
            await client.recv()
            await asyncio.sleep(pause)


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:0"
    server = WebSocketServer.bind(address, on_message=on_message, on_connect=on_connect, on_disconnect=on_disconnect)
    async with server:
        url = f"ws://127.0.0.1:{server.port}/"
        print(f"echoing on {url}")
        watching = asyncio.create_task(monitor(server))
        if len(sys.argv) > 1:
            await server.serve_forever()
        else:
            await asyncio.gather(*(chatter(url, pause) for pause in (0, 0.001, 0.01)))
        watching.cancel()
    metrics = server.metrics
    print(f"in all {metrics.messages_received:,} messages over {metrics.total_connections} connections")


if __name__ == "__main__":
    fabric.run(main())
