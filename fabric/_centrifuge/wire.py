"""What is said in the Centrifugal client protocol, in JSON: commands in, replies and pushes out. Touches no connection.

Source: `definitions/client.proto` of https://github.com/centrifugal/protocol, and "Client protocol" in the
documentation of Centrifugo. A frame is one command or several, one on each line; bytes fields of the schema are
embedded JSON.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from fabric.error import Error
from fabric_ext.protocol import MAX_REASON

__all__ = ["Command", "Connect", "Malformed", "Refused", "Subscribe"]

PING = "{}"

# A raw JSON value; NOTHING where the field is absent. Its bytes are part of the text of a message, so they are UTF-8.
Data = msgspec.Raw
NOTHING = msgspec.Raw(b"")
UInt32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
UInt64 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Malformed(Exception):
    """This is no command."""


class Refused(Error):
    """What a client asks for is refused. `authorize` and methods raise it to say how.

    Args:
        code: from 100 to 1999 it is that of the error in the reply, from 3000 to 4999 that with which the connection is
            closed: the client comes back after 3000 to 3499 and 4000 to 4499, and not after others. Your own are 400 to
            1999 and 4000 to 4999.
        message: a few words for the client.
        temporary: may the client try again?
    """

    def __init__(self, code: int, message: str, *, temporary: bool = False) -> None:
        if not (100 <= code < 2000 or FIRST_OF_CLOSES <= code < 5000):
            raise ValueError(f"the code is {code!r}, allowed are 100 to 1999 and 3000 to 4999")
        if len(message.encode()) > MAX_REASON:
            raise ValueError(f"the message has {MAX_REASON} bytes at most")
        super().__init__(message)
        self.code = code
        self.message = message
        self.temporary = temporary


class _Request(msgspec.Struct, frozen=True):
    """What a command asks for."""


class Position(_Request, frozen=True):
    offset: UInt64 = 0
    epoch: str = ""


class Subscribe(_Request, frozen=True):
    channel: str = ""
    token: str | None = None
    data: Data = NOTHING
    recover: bool = False
    offset: UInt64 = 0
    epoch: str = ""
    join_leave: bool = False
    delta: str | None = None
    type: int = 0
    flag: int = 0


class Connect(_Request, frozen=True):
    token: str | None = None
    data: Data = NOTHING
    subs: dict[str, Subscribe] | None = None


class Channel(_Request, frozen=True):
    channel: str = ""


class Publish(_Request, frozen=True):
    channel: str = ""
    data: Data = NOTHING
    type: int = 0


class History(_Request, frozen=True):
    channel: str = ""
    limit: int = 0
    since: Position | None = None
    reverse: bool = False


class Call(_Request, frozen=True):
    method: str = ""
    data: Data = NOTHING


class Anything(_Request, frozen=True):
    """What is refused, whatever is in it."""


class Command(msgspec.Struct, frozen=True):
    """One command: a number, and the first of the requests that is there. Without any it is a pong."""

    id: UInt32 = 0
    connect: Connect | None = None
    ping: Anything | None = None
    subscribe: Subscribe | None = None
    unsubscribe: Channel | None = None
    publish: Publish | None = None
    presence: Channel | None = None
    presence_stats: Channel | None = None
    history: History | None = None
    rpc: Call | None = None
    send: Anything | None = None
    refresh: Anything | None = None
    sub_refresh: Anything | None = None

    def request(self) -> tuple[str, Any]:
        """The name of what is asked for, and what is said about it; ("", None) for a pong."""
        for name in REQUESTS:
            request = getattr(self, name)
            if request is not None:
                return name, request
        return "", None


REJECT_UNRECOVERED = 2  # of Subscribe.flag: rather an error than less than all

REQUESTS = tuple(name for name in Command.__struct_fields__ if name != "id")

_decode = msgspec.json.Decoder(Command).decode
_raw = msgspec.json.Decoder(msgspec.Raw).decode
_encoder = msgspec.json.Encoder()


def commands(text: str) -> Iterator[Command]:
    """The commands of a frame, one after the other, so that a long frame is not all in memory twice.

    Raises:
        Malformed: the next one is none.
    """
    start = 0
    while start < len(text) or not start:
        end = text.find("\n", start)
        if end < 0:
            end = len(text)
        try:
            yield _decode(text[start:end])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Malformed(str(error)) from None
        start = end + 1


# What a server says


def encode(value: Any) -> str:
    """Any JSON-like value, or an object that msgspec encodes, as JSON.

    Raises:
        TypeError, ValueError, msgspec.MsgspecError: there is no JSON for it.
    """
    return _encoder.encode(value).decode()


def decoded(data: msgspec.Raw) -> Any:
    """A JSON value that a client has sent; None where it has sent none.

    Raises:
        Refused: Python has no value for it.
    """
    try:
        return msgspec.json.decode(data) if bytes(data) else None
    except (msgspec.MsgspecError, RecursionError):
        raise Refused(*BAD_REQUEST) from None


def quoted(text: str) -> str:
    """A str as JSON."""
    return encode(text)


def as_json(payload: bytes) -> str:
    """JSON on one line: a payload itself where it is JSON; of other text a string; of what is no UTF-8 in base64."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return quoted(base64.b64encode(payload).decode())
    try:
        _raw(payload)
    except (msgspec.MsgspecError, RecursionError):
        return quoted(text)
    return msgspec.json.format(payload, indent=-1).decode() if "\n" in text else text


def reply(number: int, kind: str, result: str = "{}") -> str:
    """The answer to a command; `result` is JSON."""
    return f'{{"id":{number},"{kind}":{result}}}'


def error(number: int, refused: Refused) -> str:
    """The answer to a command that is refused."""
    temporary = ',"temporary":true' if refused.temporary else ""
    return f'{{"id":{number},"error":{{"code":{refused.code},"message":{quoted(refused.message)}{temporary}}}}}'


def push(channel: str, kind: str, content: str) -> str:
    """Something about a channel that the client has not asked for now; `content` is JSON."""
    return f'{{"push":{{"channel":{quoted(channel)},"{kind}":{content}}}}}'


# Codes and words of errors and disconnects, as in errors.go and disconnect.go of the protocol's server in Go. They are
# no exceptions yet: one that is raised again and again would keep all its tracebacks.

INTERNAL = 100, "internal server error"
DENIED = 103, "permission denied"
METHOD_NOT_FOUND = 104, "method not found"
ALREADY_SUBSCRIBED = 105, "already subscribed"
LIMIT_EXCEEDED = 106, "limit exceeded"
BAD_REQUEST = 107, "bad request"
NOT_AVAILABLE = 108, "not available"
UNRECOVERABLE = 112, "unrecoverable position"

UNSUBSCRIBED = 2000, "server unsubscribe"

FIRST_OF_CLOSES = 3000
SLOW = 3008, "slow"
NO_PONG = 3012, "no pong"
MALFORMED = 3501, "bad request"
STALE = 3502, "stale"
NAME_TAKEN = 3504, "connection limit"
NO_JSON = 3506, "inappropriate protocol"
STRANGER = 3507, "permission denied"
NO_MESSAGES = 3508, "not available"
