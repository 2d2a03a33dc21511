"""A program that was written for `websockets`, moved over: a counter that all visitors share.

    python moved_over.py    # then: fabric connect ws://127.0.0.1:6789, and type {"action": "plus"}

What it had by hand is gone: the set of connections, the loop that removed dead ones, the queue for slow ones, reading
and checking JSON, and the end at SIGTERM.
"""

from dataclasses import dataclass
from typing import Literal

import fabric
from fabric import ConnectedClient, JsonError, WebSocketServer


@dataclass
class Change:
    """What a visitor sends."""

    action: Literal["plus", "minus"]


class Counter:
    def __init__(self) -> None:
        self.value = 0

    async def handler(self, client: ConnectedClient) -> None:
        server = client.server
        await server.broadcast_json({"type": "users", "count": server.connection_count})
        await client.send_json({"type": "value", "value": self.value})
        try:
            async for message in client:
                try:
                    change = message.json(Change)
                except JsonError as error:
                    await client.send_json({"type": "error", "message": str(error)})
                    continue
                self.value += 1 if change.action == "plus" else -1
                await server.broadcast_json({"type": "value", "value": self.value})
        finally:
            others = [each for each in server.clients() if each is not client]
            await server.broadcast(fabric.Message.json({"type": "users", "count": len(others)}), to=others)


if __name__ == "__main__":
    fabric.run(WebSocketServer.bind("127.0.0.1:6789", Counter().handler))
