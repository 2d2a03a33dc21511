"""Hands a transport to picows once its opening handshake has been checked.

picows would read the HTTP part itself, more strictly than browsers write it (PICOWS: `Connection: keep-alive, Upgrade`)
and more leniently than it should (no `Host`). So the request, or the response, is read and judged by us, and picows
is shown a canonical one. Only this module and `fabric_ext.connection` know picows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from picows import WSAutoPingStrategy, WSUpgradeResponseWithListener

from fabric._http.messages import accept_key
from fabric_ext.connection import Reader

if TYPE_CHECKING:
    from fabric_ext.connection import Link

__all__ = ["begin_client", "finish_client", "finish_server", "frame_limit"]

READ_BUFFER = 2048  # bytes to begin with; picows doubles it as reads fill it

_REQUEST = (
    b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: %b\r\n\r\n"
)
_SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n%b\r\n"
)


def frame_limit(max_message_size: int, *, compressed: bool) -> int:
    """The most bytes that one frame of a message may have, when what does not compress may even grow."""
    # Stored blocks cost 5 bytes in 16 KB (RFC 1951 §3.2.4), a fixed code an eighth at worst.
    return max_message_size + (max_message_size >> 3) + 1024 if compressed else max_message_size


def _protocol(
    link: Link, factory: Any, *, client: bool, host: str | None, resource: str | None, headers: Any, max_size: int
) -> Any:
    protocol = Reader(
        host, resource, client, factory,
        link,  # the logger: see Link
        False,  # disconnect_on_exception: Connection handles its own
        None,  # handshake timeout: ours covers more
        False, 10, 10, WSAutoPingStrategy.PING_WHEN_IDLE,  # auto ping: ours is one sweep for all
        False,  # auto pong: ours is bounded
        max_size, headers, READ_BUFFER,
    )  # fmt: skip
    protocol.link = link
    return protocol


class _Answer:
    """The 101 of a server, as picows knows a response: it gives the accept key, and asks for the bytes to send.

    picows' own takes apart and joins on each connection what is the same on all.
    """

    __slots__ = ("_fields", "headers")

    status = HTTPStatus.SWITCHING_PROTOCOLS

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        self._fields = fields
        self.headers: dict[str, str] = {}

    def to_bytes(self) -> bytearray:
        fields = "".join([f"{name}: {value}\r\n" for name, value in self._fields]).encode()
        return bytearray(_SWITCHING % (self.headers["Sec-WebSocket-Accept"].encode("ascii"), fields))


class _Wire:
    """What picows sees of a transport while it takes it over.

    It asks the socket for eight things, to tell its logger and to set what both event loops set anyway. On uvloop
    each answer costs a socket object; on a UNIX-domain socket the first of them fails.
    """

    __slots__ = ("_fd", "_ssl_object", "get_write_buffer_size", "write")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._fd = transport.get_extra_info("socket").fileno()
        self._ssl_object = transport.get_extra_info("ssl_object")
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.write = transport.write

    def get_extra_info(self, name: str) -> Any:
        if name == "socket":
            return self
        return self._ssl_object if name == "ssl_object" else None

    def fileno(self) -> int:
        return int(self._fd)

    def setsockopt(self, *args: int) -> None:
        pass

    def getsockopt(self, *args: int) -> int:
        return 0


def _connect(protocol: Any, link: Link, transport: asyncio.Transport) -> None:
    link.transport = transport
    protocol.connection_made(_Wire(transport))


def _feed(protocol: Any, data: bytes) -> None:
    """Let `protocol` read `data` as if it had come from the transport."""
    while data:
        buffer = protocol.get_buffer(-1)
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]


def finish_server(
    transport: asyncio.Transport, link: Link, key: str, headers: Sequence[tuple[str, str]], rest: bytes, max_size: int
) -> None:
    """Answer 101 with `headers` and connect `link`; `rest` are the bytes that came after the request.

    `max_size` bounds a frame, in bytes.
    """

    def answer(_request: Any) -> WSUpgradeResponseWithListener:
        response: Any = _Answer(headers)
        return WSUpgradeResponseWithListener(response, link)

    protocol = _protocol(link, answer, client=False, host=None, resource=None, headers=None, max_size=max_size)
    transport.set_protocol(protocol)
    _connect(protocol, link, transport)
    _feed(protocol, _REQUEST % key.encode("ascii") + rest)


def begin_client(
    transport: asyncio.Transport,
    link: Link,
    *,
    host: str,
    resource: str,
    headers: Iterable[tuple[str, str]],
    max_size: int,
) -> tuple[Any, str, bytes]:
    """Send the request of the opening handshake.

    Returns:
        picows' protocol for `finish_client`, the key that was sent, and the whole head of the request.
    """
    fields = list(headers)
    protocol = _protocol(
        link, lambda *_: link, client=True, host=host, resource=resource, headers=fields, max_size=max_size
    )
    _connect(protocol, link, transport)
    fields.clear()  # they are sent, and the protocol would keep them as long as the connection lives
    sent = protocol.transport.request.headers
    lines = (f"GET {resource} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()))
    return protocol, sent["Sec-WebSocket-Key"], "\r\n".join(lines).encode()


def finish_client(transport: asyncio.Transport, protocol: Any, key: str, rest: bytes) -> None:
    """The response was accepted: connect the link of `begin_client`; `rest` are the bytes that came after it."""
    transport.set_protocol(protocol)
    _feed(protocol, _SWITCHING % (accept_key(key).encode("ascii"), b"") + rest)
