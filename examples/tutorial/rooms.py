"""Part 2 of the tutorial: rooms, and who is in them."""

from dataclasses import dataclass
from pathlib import Path

import fabric
from fabric import ConnectedClient, JsonError, Message, Request, Response, Router, WebSocketServer

PAGE = Path(__file__).with_name("rooms.html")

router = Router()


@dataclass
class Say:
    """What a page sends."""

    text: str


@router.route("/rooms/{room}")
async def talk(client: ConnectedClient, room: str) -> None:
    """One connection to one room."""
    if not room.isalnum():  # a dot or a * in it would mean other rooms too
        await client.close(4004, "no such room")
        return
    topic = f"room.{room}"
    name = client.state_data["name"] = client.request.query.get("name", "")[:30] or "somebody"
    client.subscribe(topic)
    tell_who_is_there(client, topic)
    try:
        async for message in client:
            said = message.json(Say)
            client.server.publish(topic, Message.json({"kind": "said", "name": name, "text": said.text}))
    except JsonError as error:
        await client.close(1007, str(error)[:100])
    finally:
        client.unsubscribe(topic)
        tell_who_is_there(client, topic)


def tell_who_is_there(client: ConnectedClient, topic: str) -> None:
    """Send the names of all in a room to all in it."""
    names = sorted(each.state_data["name"] for each in client.server.topics.clients(topic))
    client.server.publish(topic, Message.json({"kind": "people", "names": names}))


def page(request: Request) -> Response | None:
    """Answer `/` with the page."""
    if request.path == "/":
        return Response(200, {"Content-Type": "text/html; charset=utf-8"}, PAGE.read_bytes())
    return None


if __name__ == "__main__":
    fabric.run(WebSocketServer.bind("127.0.0.1:8080", router, process_request=page))
