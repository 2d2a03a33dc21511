"""What is said between two ends, whoever they are: one connection as data, and how to lead or follow it.

The client leads: it sends messages and compares their echoes, has pings answered in both directions, and
closes the connection or has it closed. The server follows: it echoes, except that a text `ping DATA` has it
ping the client, and `close CODE REASON` has it close. node/client.js and node/server.js do the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

# Bytes: where the length takes another form (RFC 6455 §5.2), and a large message.
SIZES = (0, 125, 126, 65535, 65536, 5_000_000)

SUPPORTED = ("interop.v3", "interop.v2")  # by every server
OFFERED = ("unknown", "interop.v2", "interop.v1")
CHOSEN = "interop.v2"

Report = dict[str, Any]


@dataclass(frozen=True)
class Talk:
    """One connection.

    Attributes:
        closer: which side closes.
        code: None for what the closer sends when its user names no code.
        protocols: the subprotocols that the client offers.
        messages: kind and bytes of each message.
        pings: the data of each ping.
    """

    closer: Literal["client", "server"]
    code: int | None
    reason: str = ""
    protocols: tuple[str, ...] = ()
    messages: tuple[tuple[Literal["text", "binary"], int], ...] = (("text", 1500),)
    pings: tuple[str, ...] = ()


LONGEST_REASON = "😀" * 30 + "abc"  # 123 bytes

TALKS = (
    Talk(
        "client",
        1000,
        "done",
        protocols=OFFERED,
        messages=tuple((kind, size) for kind in ("text", "binary") for size in SIZES),
        pings=("", "ping 😀", "p" * 125),
    ),
    Talk("client", None),
    Talk("client", 4999, LONGEST_REASON),
    Talk("server", 1000, ""),
    Talk("server", 1001, "going away"),
    Talk("server", 1011, "went wrong", protocols=OFFERED),
    Talk("server", 4000, LONGEST_REASON),
)


def text(size: int) -> str:
    """`size` bytes of UTF-8, in characters of 1, 3, 2 and 4 bytes."""
    return "G€é😀" * (size // 10) + "a" * (size % 10)


def binary(size: int) -> bytes:
    """`size` bytes that repeat only after 64 KB, and late enough to tell one masking key from another."""
    block = bytes((i * 7 + (i >> 8)) & 0xFF for i in range(min(size, 65536)))
    return (block * (size // 65536 + 1))[:size]


RECIPES: dict[str, Callable[[int], str | bytes]] = {"text": text, "binary": binary}


class End(Protocol):
    """One end of an open connection, of whatever library."""

    protocol: str | None
    code: int | None
    """The close code that this end reports; None while open."""
    reason: str | None
    """The close reason that this end reports; None where its library does not tell."""

    @property
    def extension(self) -> str:
        """The name of the extension in use, or nothing."""

    async def send(self, data: str | bytes) -> None: ...

    async def recv(self) -> str | bytes | None:
        """The next message; None once the connection is closed."""

    async def ping(self, data: bytes) -> None:
        """Returns when the pong with the same data has come."""

    async def close(self, code: int | None, reason: str) -> None:
        """Returns when the connection is closed."""


async def lead(end: End, talk: Talk) -> Report:
    """The client's side of `talk`."""
    echoed = []
    for kind, size in talk.messages:
        sent = RECIPES[kind](size)
        await end.send(sent)
        if await end.recv() == sent:
            echoed.append([kind, size])
    for data in talk.pings:
        await end.ping(data.encode())
        await end.send(f"ping {data}")
        if await end.recv() == f"pong {data}":
            echoed.append(["pong", data])
    if talk.closer == "client":
        await end.close(talk.code, talk.reason)
    else:
        await end.send(f"close {talk.code} {talk.reason}")
        if await end.recv() is not None:
            echoed.append(["nothing expected"])
    return {"echoed": echoed, **report(end)}


async def follow(end: End) -> Report:
    """The server's side of any talk."""
    while (message := await end.recv()) is not None:
        words = message.split(" ", 1) if isinstance(message, str) else []
        match words:
            case ["ping", data]:
                await end.ping(data.encode())
                await end.send(f"pong {data}")
            case ["close", rest]:
                code, reason = rest.split(" ", 1)
                await end.close(int(code), reason)
            case _:
                await end.send(message)
    return report(end)


def report(end: End) -> Report:
    return {
        "protocol": end.protocol or "",
        "extension": end.extension,
        "code": end.code,
        "reason": end.reason,
    }
