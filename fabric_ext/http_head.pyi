from enum import IntEnum

from typing_extensions import disjoint_base

MAX_HEADERS: int
"""Header lines of a head, at most."""

class Fault(IntEnum):
    """What is wrong with a head."""

    NO_FAULT = 0
    BAD_START_LINE = 1
    BAD_METHOD = 2
    BAD_VERSION = 3
    BAD_HEADER = 4
    TOO_MANY_HEADERS = 5
    BAD_HOST = 6
    HAS_BODY = 7
    NO_UPGRADE = 8
    BAD_UPGRADE_REQUEST = 9
    BAD_WEBSOCKET_VERSION = 10
    BAD_KEY = 11

@disjoint_base
class Head:
    """What the heads of requests and responses have in common."""

    @property
    def data(self) -> bytes:
        """The whole head without its empty line; None until it is there."""
    @property
    def fault(self) -> int:
        """A `Fault`."""
    @property
    def count(self) -> int:
        """Header lines read so far."""
    @property
    def wrong(self) -> bytes | None:
        """What the fault is about, if it is about some bytes: a header's name, a method, the start of a line."""
    def feed(self, buffer: bytes) -> int:
        """Read on in `buffer`, all that was received so far: what was fed before, and more.

        Returns:
            The offset of what follows the head; 0 when the head is not complete, or cannot be (`fault`).
        """
    def get_all(self, name: str) -> list[str]:
        """The values of all lines with the header `name`, in order; its case does not matter.

        Bytes that are not UTF-8 are lone surrogates, as in a `HeaderMap`.
        """
    def has(self, name: str) -> bool:
        """Is there a line with the header `name`?"""
    def has_token(self, name: str, token: str) -> bool:
        """Does the list-valued header `name` hold `token`, over all its lines? Case does not matter.

        Firefox sends `Connection: keep-alive, Upgrade`. A list that is malformed holds nothing.
        """

@disjoint_base
class RequestHead(Head):
    """The head of a request: GET or HEAD, of HTTP/1, without a body, with one `Host` (RFC 9112 §3.2)."""

    @property
    def is_head(self) -> bool:
        """Is the method HEAD?"""
    @property
    def key(self) -> str:
        """`Sec-WebSocket-Key`, once `check_upgrade` has found it valid; None before."""
    def check_upgrade(self) -> int:
        """Is this a valid opening handshake (RFC 6455 §4.2.1)? The `Fault`, or NO_FAULT; then `key` is set."""

@disjoint_base
class ResponseHead(Head):
    """The head of a response: of HTTP/1, with a status of three digits and any reason."""

    @property
    def status(self) -> int:
        """0 until the status line is there."""
