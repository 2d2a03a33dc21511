"""JSON-RPC 2.0 as text: what is said, and what has been said.

Owns the forms of the specification (https://www.jsonrpc.org/specification) and its error codes, and the three methods
that this library adds for what the specification leaves open: to cancel a call, to take a stream, and to let it go on.
Sends nothing and calls nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from fabric.error import Error

__all__ = [
    "BUSY",
    "CANCEL",
    "CANCELLED",
    "FAILED",
    "INTERNAL_ERROR",
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "ITEM",
    "METHOD_NOT_FOUND",
    "MORE",
    "PARSE_ERROR",
    "STREAM",
    "Incoming",
    "RpcError",
    "answer",
    "error_answer",
    "items_of",
    "read",
    "request",
]

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
# Of the range that the specification leaves to servers.
FAILED = -32000
CANCELLED = -32001
BUSY = -32002

CANCEL = "$/cancel"  # notification (id): the caller does not wait for this call any more
STREAM = "$/stream"  # request (method, params, window): call a method that yields, `window` items ahead at most
ITEM = "$/item"  # notification (id, value): the next item of a stream
MORE = "$/more"  # notification (id, n): so many items more may come

_encode = msgspec.json.Encoder().encode


class RpcError(Error):
    """What the other end answered instead of a result; raised in a method, what it answers.

    Args:
        message: one sentence for the caller.
        code: -32768 to -32000 are the specification's; others are the application's.
        data: more about it, as JSON.
    """

    def __init__(self, message: str, *, code: int = FAILED, data: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.data = data


class _ErrorObject(msgspec.Struct):
    code: int
    message: str
    data: msgspec.Raw = msgspec.Raw(b"null")


class Incoming(msgspec.Struct):
    """A request, a notification or an answer; what it is, `is_answer` and `id` tell."""

    jsonrpc: str
    id: int | str | float | msgspec.UnsetType | None = msgspec.UNSET
    method: str | None = None
    params: msgspec.Raw = msgspec.Raw(b"")
    result: msgspec.Raw = msgspec.Raw(b"")
    error: _ErrorObject | None = None
    # The trace context of a request, see fabric.otel; whatever they are, the request is valid.
    traceparent: Any = None
    tracestate: Any = None

    @property
    def is_answer(self) -> bool:
        """Is it an answer to a request of ours?"""
        return self.method is None

    @property
    def is_valid(self) -> bool:
        """Is it one of the specification's forms?"""
        if self.jsonrpc != "2.0":
            return False
        if self.method is None:
            return self.id is not msgspec.UNSET and bool(bytes(self.result)) != (self.error is not None)
        return bytes(self.params)[:1] in (b"", b"[", b"{")

    def failure(self) -> RpcError | None:
        """The error that an answer carries; None for a result."""
        if self.error is None:
            return None
        data = msgspec.json.decode(self.error.data)
        return RpcError(self.error.message, code=self.error.code, data=data)


_incoming = msgspec.json.Decoder(Incoming)


def items_of(text: str | bytes) -> list[msgspec.Raw] | None:
    """The messages of a batch; None where `text` is a single message. Raises msgspec.DecodeError: not JSON."""
    data = text.encode() if isinstance(text, str) else text
    if not data.lstrip(b" \t\r\n").startswith(b"["):
        return None
    return msgspec.json.decode(data, type=list[msgspec.Raw])


def read(text: str | bytes | msgspec.Raw) -> Incoming:
    """Read one message.

    Raises:
        msgspec.ValidationError: JSON, but none of the forms of the specification.
        msgspec.DecodeError: not JSON.
    """
    found = _incoming.decode(text)
    if not found.is_valid:
        raise msgspec.ValidationError("none of the forms of JSON-RPC 2.0")
    return found


def request(
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    id: int | None = None,  # noqa: A002
    more: Mapping[str, str] | None = None,
) -> str:
    """A request; without `id` a notification. Positional arguments become an array, named ones an object.

    Args:
        more: members beside those of the specification.

    Raises:
        TypeError: both kinds of arguments at once, or a value that JSON cannot express.
    """
    if args and kwargs:
        raise TypeError(f"{method}: JSON-RPC takes positional or named arguments, not both")
    said: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if args or kwargs:
        said["params"] = args or kwargs
    if id is not None:
        said["id"] = id
    if more:
        said |= more
    return _encode(said).decode()


def answer(id: Any, result: Any) -> str:  # noqa: A002
    """The answer to the request `id`."""
    return _encode({"jsonrpc": "2.0", "id": id, "result": result}).decode()


def error_answer(id: Any, error: RpcError) -> str:  # noqa: A002
    """The answer to the request `id`, None where it could not be read, that `error` came of it."""
    said: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.data is not None:
        said["data"] = error.data
    return _encode({"jsonrpc": "2.0", "id": id, "error": said}).decode()
