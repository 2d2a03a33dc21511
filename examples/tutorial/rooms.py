"""Part 2 of the tutorial: rooms, and who is in them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fabric
from fabric import ConnectedClient, JsonError, Message, Request, Response, Router, ServerConfig, WebSocketServer
from fabric.fleet import Member

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
    name = "".join(filter(str.isalnum, client.request.query.get("name", "")))[:30] or "somebody"
    client.name = name
    client.subscribe(topic)
    try:
        async for message in client:
            said = message.json(Say)
            client.server.publish(topic, Message.json({"kind": "said", "name": name, "text": said.text}))
    except JsonError as error:
        await client.close(1007, str(error)[:100])


def page(request: Request) -> Response | None:
    """Answer `/` with the page."""
    if request.path == "/":
        return Response(200, {"Content-Type": "text/html; charset=utf-8"}, PAGE.read_bytes())
    return None


def make_server(
    config: ServerConfig,
    answer: Callable[[Request], Response | None] = page,
    broker: str = "memory:",
) -> WebSocketServer:
    """The server of the rooms. `answer` is asked about plain HTTP."""
    config = config.with_duplicate_names("both")  # two people may have one name
    server = WebSocketServer(config, router, process_request=answer, broker=broker)
    server.topics.configure("room.*", presence=True)

    async def tell_who_is_there(topic: str, _: Member) -> None:
        """Somebody has come or gone: send the names of all in the room to all in it."""
        names = sorted(member.name for member in await server.presence(topic))
        await server.broadcast(Message.json({"kind": "people", "names": names}), to=topic)

    server.on_join = server.on_leave = tell_who_is_there
    return server


if __name__ == "__main__":
    fabric.run(make_server(ServerConfig("127.0.0.1:8080")))
