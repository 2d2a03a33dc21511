"""A client without an event loop: blocking calls, two threads, a timeout, busy polling.

Run it alone (it starts a server to talk to, in a process of its own), or give it the address of any server that echoes:

    python examples/sync_client.py [ws://host:port/path]
"""

import asyncio
import multiprocessing
import sys
import threading
from multiprocessing.queues import SimpleQueue

import fabric.sync
from fabric import ConnectedClient, Timeout, WebSocketServer


def talk(url: str) -> None:
    with fabric.sync.connect(url) as client:
        client.send("hello")
        message = client.recv(timeout=5)
        assert message  # recv gives None when the server has closed the connection; this one does not
        print(f"received: {message.text!r}")
        print(f"ping:     {client.ping() * 1e6:.0f} µs there and back")

        try:
            client.recv(timeout=0.01)
        except Timeout as error:
            print(f"nothing:  {error}")  # what comes later is not lost

        # Any thread may send; this one receives.
        sender = threading.Thread(target=lambda: client.send_many(["one", "two", "three", "end"]))
        sender.start()
        for message in client:
            print(f"thread:   {message.text}")
            if message == "end":
                break
        sender.join()

    # This one looks for the answer instead of sleeping: the lowest latency, and a busy core while it waits.
    with fabric.sync.connect(url, busy_poll=0.001, compression=None) as client:
        client.send("quick")
        message = client.recv(timeout=5)
        assert message
        print(f"polled:   {message.text!r}")
    print(f"closed with {client.close_code}")


async def echo(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(message)


def serve(told: "SimpleQueue[int]") -> None:
    async def main() -> None:
        async with WebSocketServer.bind("127.0.0.1:0", echo) as server:
            told.put(server.port)
            await asyncio.Future()

    asyncio.run(main())


def main() -> None:
    if len(sys.argv) > 1:
        talk(sys.argv[1])
        return
    context = multiprocessing.get_context("spawn")
    told: SimpleQueue[int] = context.SimpleQueue()
    server = context.Process(target=serve, args=(told,), daemon=True)
    server.start()
    try:
        talk(f"ws://127.0.0.1:{told.get()}/")
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
