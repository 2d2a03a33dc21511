"""`fabric connect`: talk to a server line by line, and see what goes both ways.

Owns the conversation: lines become messages or commands, messages become lines. Works the same with a person
at a terminal and in a pipe.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fabric.cli.arguments import (
    Formatter,
    add_connection_options,
    add_loop_option,
    client_config,
    count,
    duration,
    size,
)
from fabric.cli.lines import lines, stdin_is_terminal
from fabric.cli.screen import Screen, printable
from fabric.cli.units import format_bytes, format_duration
from fabric.client import WebSocketClient
from fabric.config import DEFAULT_MAX_MESSAGE_SIZE, ClientConfig
from fabric.error import ConnectionClosed, ConnectionFailed, InvalidState, close_code_name
from fabric.message import Message

__all__ = ["Transcript", "configure", "parse_close", "run"]

HEX_SHOWN = 32  # bytes of a binary message
RETRY = 0.1  # seconds
LINGER = 1.0  # seconds of silence after the end of a pipe
NORMAL = (1000, 1001, 1005)

DESCRIPTION = """\
Connect to a WebSocket server. Each line is sent as a text message; what arrives is shown.

At a terminal a line that starts with / is a command:
  /ping [DATA]            ping, and show the round trip
  /binary HEX             send bytes, as in /binary 01 ff 80
  /close [CODE [REASON]]  close and wait for the answer (Ctrl-D closes with 1000)
  /help                   this list
  //TEXT                  send /TEXT
"""
HELP = DESCRIPTION.partition("command:\n")[2].rstrip()
EPILOG = """\
examples:
  fabric connect ws://127.0.0.1:8080
  echo '{"subscribe": "trades"}' | fabric connect wss://example.com/feed --count 10 --raw
  fabric connect ws://127.0.0.1:8080 --ping 1 --json < /dev/null
"""


def configure(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "connect",
        help="talk to a server: type lines, see messages",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Formatter,
    )
    parser.add_argument("url", metavar="URL", help="ws://host:port/path or wss://...")
    talk = parser.add_argument_group("conversation")
    talk.add_argument(
        "--ping",
        type=duration,
        metavar="SECONDS",
        help="ping at this interval; goes on after the end of a pipe",
    )
    talk.add_argument("--count", type=count, metavar="N", help="close after N messages received")
    talk.add_argument(
        "--linger",
        type=duration,
        default=LINGER,
        metavar="SECONDS",
        help="after the end of a pipe, close when nothing has arrived for so long (default: %(default)g)",
    )
    talk.add_argument(
        "--commands",
        action=argparse.BooleanOptionalAction,
        help="take lines that start with / for commands (default: at a terminal only)",
    )
    talk.add_argument(
        "--wait",
        type=duration,
        default=0.0,
        metavar="SECONDS",
        help="try for so long to connect to a server that does not listen yet",
    )
    talk.add_argument("--reconnect", action="store_true", help="connect again when the connection is lost")
    talk.add_argument(
        "--max-size",
        type=size,
        default=DEFAULT_MAX_MESSAGE_SIZE,
        metavar="BYTES",
        help="of a message received (default: 10M)",
    )
    forms = parser.add_argument_group("report").add_mutually_exclusive_group()
    forms.add_argument("--raw", action="store_true", help="only the payloads received, one per line, unaltered")
    forms.add_argument("--json", action="store_true", help="every event as a line of JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="no remarks on standard error")
    add_connection_options(parser, compression=True)
    add_loop_option(parser)
    parser.set_defaults(run=run)


class Transcript:
    """Shows what happens, in the form asked for."""

    def __init__(self, screen: Screen, form: str) -> None:
        """`form` is "text", "raw" or "json"."""
        self._screen = screen
        self._form = form

    @property
    def is_raw(self) -> bool:
        """Are payloads written as they are?"""
        return self._form == "raw"

    def message(self, direction: str, message: Message) -> None:
        """A message that was "sent" or "received"."""
        kind = "text" if message.is_text else "binary"
        if self._form == "json":
            data = message.text if message.is_text else message.as_bytes().hex()
            self._event(direction, type=kind, size=len(message), data=data)
        elif self._form == "text":
            arrow = ">" if direction == "sent" else "<"
            self._screen.say(f"{arrow} {kind}, {format_bytes(len(message))}: {_shown(message)}")
        elif direction == "received":
            out = self._screen.out
            out.flush()
            out.buffer.write(message.as_bytes() + b"\n")
            out.buffer.flush()

    def ping(self) -> None:
        """A ping was sent."""
        if self._form == "text":
            self._screen.say("> ping")

    def pong(self, seconds: float) -> None:
        """A ping was answered."""
        if self._form == "json":
            self._event("pong", round_trip_us=round(seconds * 1e6, 1))
        elif self._form == "text":
            self._screen.say(f"< pong after {format_duration(seconds)}")

    def connected(self, client: WebSocketClient, seconds: float) -> None:
        """The connection is open; it took `seconds`."""
        extensions = ", ".join(client.extensions)
        if self._form == "json":
            self._event("connected", url=client.url, subprotocol=client.subprotocol, extensions=extensions)
            return
        terms = [f"subprotocol {client.subprotocol}"] if client.subprotocol else []
        terms += [extensions] if extensions else []
        self._screen.note(
            f"connected to {client.url} in {format_duration(seconds)}{''.join(f', {term}' for term in terms)}"
        )

    def reconnected(self) -> None:
        """A lost connection was replaced."""
        if self._form == "json":
            self._event("reconnected")
        else:
            self._screen.note("connected again")

    def lost(self, error: Exception) -> None:
        """A connection was lost, and another one is sought."""
        if self._form == "json":
            self._event("disconnected", error=str(error))
        else:
            self._screen.note(printable(str(error)))

    def closed(self, code: int, reason: str, by: str) -> None:
        """The connection is closed for good."""
        if self._form == "json":
            self._event("closed", code=code, reason=reason, by=by)
            return
        side = {"local": "by this side", "remote": "by the server"}.get(by, "without a close frame")
        text = f": {printable(reason)}" if reason else ""
        self._screen.note(f"closed {side} with {code} ({close_code_name(code)}){text}")

    def remark(self, text: str) -> None:
        """Something for the person only."""
        self._screen.note(text)

    def _event(self, event: str, **details: Any) -> None:
        self._screen.say(json.dumps({"event": event, "time": time.time(), **details}, ensure_ascii=False))


def _shown(message: Message) -> str:
    if message.is_text:
        return printable(message.text)
    data = message.as_bytes()
    return data[:HEX_SHOWN].hex(" ") + (" ..." if len(data) > HEX_SHOWN else "")


def parse_close(text: str) -> tuple[int, str]:
    """Code and reason of a /close; ValueError for a code that is no number."""
    code, _, reason = text.strip().partition(" ")
    if code and not (code.isascii() and code.isdecimal()):
        raise ValueError(f"{code!r} is not a close code: expected a number such as 1000")
    return int(code or 1000), reason.strip()


class Conversation:
    """What goes on between standard input and one server.

    `closed_by` tells, at the end, which side began to close: "local", "remote" or "transport".
    """

    def __init__(self, client: WebSocketClient, transcript: Transcript, *, has_commands: bool) -> None:
        self._client = client
        self._transcript = transcript
        self._commands: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = (
            {"ping": self._ping, "binary": self._binary, "close": self._close, "help": self._help}
            if has_commands
            else {}
        )
        self._last_arrival = 0.0
        self.closed_by = "remote"

    async def hold(self, *, limit: int | None, linger: float | None, ping_interval: float | None) -> None:
        """Talk until the server closes, `limit` messages have arrived, or there is nothing more to say.

        Args:
            linger: seconds of silence to wait for after the last line, unless `limit` or pings keep it going;
                None = close at once.
            ping_interval: seconds between pings; None = none.
        """
        stays = linger is not None and (limit is not None or ping_interval is not None)
        receiving = asyncio.create_task(self._receive(limit))
        speaking = asyncio.create_task(self._speak(linger, stays=stays))
        pinging = asyncio.create_task(self._keep_pinging(ping_interval))
        try:
            done, _ = await asyncio.wait([receiving, speaking, pinging], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await self._end()
            await receiving
        except ConnectionClosed as error:
            self.closed_by = error.by
        finally:
            for task in (receiving, speaking, pinging):
                task.cancel()
            await asyncio.gather(receiving, speaking, pinging, return_exceptions=True)

    async def _end(self, code: int = 1000, reason: str = "") -> None:
        if self._client.is_connected:
            self.closed_by = "local"
        await self._client.close(code, reason)

    async def _receive(self, limit: int | None) -> None:
        received = 0
        async for message in self._client:
            self._last_arrival = time.monotonic()
            self._transcript.message("received", message)
            received += 1
            if received == limit:
                return

    async def _speak(self, linger: float | None, *, stays: bool) -> None:
        async for line in lines(editor=not self._transcript.is_raw):
            await self._say(line.decode("utf-8", "replace"))
        if stays:
            await asyncio.Event().wait()
        if linger is not None:
            end_of_input = time.monotonic()
            quiet_at = end_of_input + linger
            while (left := quiet_at - time.monotonic()) > 0:
                await asyncio.sleep(left)
                quiet_at = max(self._last_arrival, end_of_input) + linger

    async def _say(self, line: str) -> None:
        """Do what a line asks for."""
        if self._commands and line.startswith("/"):
            name, _, rest = line[1:].partition(" ")
            if not name.startswith("/"):
                await self._command(name, rest)
                return
            line = line[1:]
        message = Message.text(line)
        await self._client.send(message)
        self._transcript.message("sent", message)

    async def _command(self, name: str, rest: str) -> None:
        function = self._commands.get(name)
        if function is None:
            self._transcript.remark(f"/{printable(name)} is not a command; /help lists them")
            return
        try:
            await function(rest.strip())
        except (ValueError, InvalidState) as error:
            self._transcript.remark(printable(str(error)))

    async def _ping(self, data: str) -> None:
        self._transcript.ping()
        timeout = self._client.config.heartbeat.ping_timeout
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                self._transcript.pong(await self._client.ping(data or None))
        except TimeoutError:
            if not limit.expired():
                raise
            self._transcript.remark(f"no pong within {timeout:g} s")

    async def _binary(self, text: str) -> None:
        try:
            message = Message.binary(bytes.fromhex(text))
        except ValueError:
            raise ValueError("/binary takes hexadecimal digits, two for each byte, as in /binary 01 ff") from None
        await self._client.send(message)
        self._transcript.message("sent", message)

    async def _close(self, text: str) -> None:
        code, reason = parse_close(text)
        await self._end(code, reason)

    async def _help(self, _: str) -> None:
        self._transcript.remark(HELP)

    async def _keep_pinging(self, interval: float | None) -> None:
        while interval is not None:
            await self._ping("")
            await asyncio.sleep(interval)
        await asyncio.Event().wait()


async def _connected(config: ClientConfig, transcript: Transcript, deadline: float) -> WebSocketClient:
    """A client; until `deadline`, by `time.perf_counter`, a server that does not listen yet is tried again."""
    while True:
        try:
            return await WebSocketClient.connect(
                config,
                on_disconnect=lambda _, error: transcript.lost(error) if config.auto_reconnect else None,
                on_reconnect=lambda _: transcript.reconnected(),
            )
        except ConnectionFailed:
            if time.perf_counter() >= deadline:
                raise
            await asyncio.sleep(RETRY)


async def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Connect and talk; 0 after a normal close, 1 after another one."""
    config = client_config(
        arguments.url, arguments, auto_reconnect=arguments.reconnect, max_message_size=arguments.max_size
    )
    transcript = Transcript(screen, "raw" if arguments.raw else "json" if arguments.json else "text")
    begun = time.perf_counter()
    client = await _connected(config, transcript, begun + arguments.wait)
    transcript.connected(client, time.perf_counter() - begun)
    is_person = stdin_is_terminal()
    has_commands = is_person if arguments.commands is None else arguments.commands
    conversation = Conversation(client, transcript, has_commands=has_commands)
    try:
        await conversation.hold(
            limit=arguments.count,
            linger=None if is_person else arguments.linger,
            ping_interval=arguments.ping,
        )
    finally:
        await client.close()
    code = client.close_code or 1006
    transcript.closed(code, client.close_reason or "", conversation.closed_by)
    return 0 if code in NORMAL or conversation.closed_by == "local" else 1
