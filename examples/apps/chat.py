"""A chat with a browser page: rooms, names, who is there, the latest messages, and whispering.

    python chat.py    # then open http://127.0.0.1:8080/?name=Ada in two windows

A page sends {"text": "..."} or {"text": "...", "to": "Grace"}.
"""

from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path

import fabric
from fabric import ConnectedClient, JsonError, Message, RateLimitConfig, Request, Response, Router, WebSocketServer

PAGE = Path(__file__).with_name("chat.html")
KEPT = 50  # messages of a room that a newcomer gets

router = Router()
history: dict[str, deque[Message]] = defaultdict(lambda: deque(maxlen=KEPT))


@dataclass
class Say:
    """What a page sends."""

    text: str
    to: str | None = None


@router.route("/rooms/{room}")
async def talk(client: ConnectedClient, room: str) -> None:
    name = client.request.query.get("name", "")[:30]
    topic = f"room.{room}"
    if not room.isalnum() or not name or name in people(client, topic):
        await client.close(4000, "a room and a name that is free, please")
        return
    client.state_data["name"] = name
    client.subscribe(topic)
    tell(client, topic)
    await client.send_many(history[room])
    try:
        async for message in client:
            said = message.json(Say)
            line = Message.json({"kind": "said", "name": name, "text": said.text[:1000], "to": said.to})
            if said.to is None:
                history[room].append(line)
                client.server.publish(topic, line)
            elif said.to in people(client, topic):
                await client.server.broadcast(line, to={client, people(client, topic)[said.to]})
    except JsonError as error:
        await client.close(1007, str(error)[:100])
    finally:
        client.unsubscribe(topic)
        tell(client, topic)
        if not people(client, topic):
            history.pop(room, None)


def people(client: ConnectedClient, topic: str) -> dict[str, ConnectedClient]:
    """Those in a room, by name."""
    return {each.state_data["name"]: each for each in client.server.topics.clients(topic)}


def tell(client: ConnectedClient, topic: str) -> None:
    """Tell all in a room who is there."""
    client.server.publish(topic, Message.json({"kind": "people", "names": sorted(people(client, topic))}))


def page(request: Request) -> Response | None:
    if request.path == "/":
        return Response(200, {"Content-Type": "text/html; charset=utf-8"}, PAGE.read_bytes())
    return None


def make_server(address: str) -> WebSocketServer:
    limit = RateLimitConfig(messages_per_second=5, messages_burst=20)
    return WebSocketServer.bind(address, router, process_request=page, rate_limit=limit, max_message_size=8192)


if __name__ == "__main__":
    fabric.run(make_server("127.0.0.1:8080"))
