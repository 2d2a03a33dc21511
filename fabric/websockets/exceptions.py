"""The exceptions, under the names and with the texts that `websockets.exceptions` has.

    WebSocketException
      ConnectionClosed                   ConnectionClosedOK  ConnectionClosedError
      InvalidURI  InvalidProxy
      InvalidHandshake
        SecurityError                    RequestLineTooLong  StatusLineTooLong  HeaderLineTooLong  TooManyHeaders
        ProxyError                       InvalidProxyMessage  InvalidProxyStatus
        InvalidMessage  InvalidMethod  InvalidProtocol  InvalidStatus
        InvalidHeader                    InvalidHeaderFormat  InvalidHeaderValue  InvalidOrigin  InvalidUpgrade
        NegotiationError                 DuplicateParameter  InvalidParameterName  InvalidParameterValue
      ProtocolError  PayloadTooBig  TooManyFragments  InvalidState  ConcurrencyError

What the system or the event loop raises (`OSError`, `ssl.SSLError`, `TimeoutError`) is passed on as it is.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from fabric.websockets._lazy import lazy

if TYPE_CHECKING:
    from fabric.websockets.frames import Close
    from fabric.websockets.http11 import Response

__all__ = [
    "ConcurrencyError",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "DuplicateParameter",
    "HeaderLineTooLong",
    "InvalidHandshake",
    "InvalidHeader",
    "InvalidHeaderFormat",
    "InvalidHeaderValue",
    "InvalidMessage",
    "InvalidMethod",
    "InvalidOrigin",
    "InvalidParameterName",
    "InvalidParameterValue",
    "InvalidProtocol",
    "InvalidProxy",
    "InvalidProxyMessage",
    "InvalidProxyStatus",
    "InvalidState",
    "InvalidStatus",
    "InvalidURI",
    "InvalidUpgrade",
    "NegotiationError",
    "PayloadTooBig",
    "ProtocolError",
    "ProxyError",
    "RequestLineTooLong",
    "SecurityError",
    "StatusLineTooLong",
    "TooManyFragments",
    "TooManyHeaders",
    "WebSocketException",
]


class WebSocketException(Exception):
    """The base of all these exceptions."""


class ConnectionClosed(WebSocketException):
    """The connection is closed.

    Attributes:
        rcvd: code and reason of the close frame received, or None.
        sent: those of the one sent, or None.
        rcvd_then_sent: which of the two came first; None unless there are both.
    """

    def __init__(self, rcvd: Close | None, sent: Close | None, rcvd_then_sent: bool | None = None) -> None:
        assert (rcvd_then_sent is None) == (rcvd is None or sent is None)
        super().__init__(rcvd, sent, rcvd_then_sent)
        self.rcvd = rcvd
        self.sent = sent
        self.rcvd_then_sent = rcvd_then_sent

    def __str__(self) -> str:
        if self.rcvd is None:
            return (
                "no close frame received or sent" if self.sent is None else f"sent {self.sent}; no close frame received"
            )
        if self.sent is None:
            return f"received {self.rcvd}; no close frame sent"
        if self.rcvd_then_sent:
            return f"received {self.rcvd}; then sent {self.sent}"
        return f"sent {self.sent}; then received {self.rcvd}"

    @property
    def code(self) -> int:
        """The code received, or 1006. Deprecated: ask `rcvd` and `sent`."""
        _warn("code", "close_code")
        return 1006 if self.rcvd is None else self.rcvd.code

    @property
    def reason(self) -> str:
        """The reason received, or "". Deprecated: ask `rcvd` and `sent`."""
        _warn("reason", "close_reason")
        return "" if self.rcvd is None else self.rcvd.reason


def _warn(name: str, instead: str) -> None:
    text = f"ConnectionClosed.{name} is deprecated; use Protocol.{instead} or ConnectionClosed.rcvd.{name}"
    warnings.warn(text, DeprecationWarning, stacklevel=3)


class ConnectionClosedOK(ConnectionClosed):
    """It was closed normally: close frames with 1000, 1001 or no code went both ways."""


class ConnectionClosedError(ConnectionClosed):
    """It was closed with another code, or without a close handshake."""


class InvalidURI(WebSocketException):
    """What `connect` was given is not the URI of a WebSocket server."""

    def __init__(self, uri: str, msg: str) -> None:
        super().__init__(uri, msg)
        self.uri = uri
        self.msg = msg

    def __str__(self) -> str:
        return f"{self.uri} isn't a valid URI: {self.msg}"


class InvalidProxy(WebSocketException):
    """What `proxy` or the environment says is not the URI of a proxy."""

    def __init__(self, proxy: str, msg: str) -> None:
        super().__init__(proxy, msg)
        self.proxy = proxy
        self.msg = msg

    def __str__(self) -> str:
        return f"{self.proxy} isn't a valid proxy: {self.msg}"


class InvalidHandshake(WebSocketException):
    """The opening handshake failed."""


class SecurityError(InvalidHandshake):
    """A request or response breaks a security rule or limit."""


class RequestLineTooLong(SecurityError):
    """The first line of a request is too long."""


class StatusLineTooLong(SecurityError):
    """The first line of a response is too long."""


class HeaderLineTooLong(SecurityError):
    """A header line is too long."""


class TooManyHeaders(SecurityError):
    """There are too many header lines."""


class ProxyError(InvalidHandshake):
    """The proxy could not be used."""


class InvalidProxyMessage(ProxyError):
    """The proxy's response is malformed."""


class InvalidProxyStatus(ProxyError):
    """The proxy refused the connection."""

    def __init__(self, response: Response) -> None:
        super().__init__(response)
        self.response = response

    def __str__(self) -> str:
        return f"proxy rejected connection: HTTP {self.response.status_code:d}"


class InvalidMessage(InvalidHandshake):
    """A request or response is malformed."""


class InvalidMethod(InvalidHandshake):
    """The request's method is not GET."""

    def __init__(self, method: str) -> None:
        super().__init__(method)
        self.method = method

    def __str__(self) -> str:
        return f"unsupported HTTP method: {self.method}"


class InvalidProtocol(InvalidHandshake):
    """The request is not HTTP/1.1."""

    def __init__(self, protocol: str) -> None:
        super().__init__(protocol)
        self.protocol = protocol

    def __str__(self) -> str:
        return f"unsupported HTTP version: {self.protocol}"


class InvalidStatus(InvalidHandshake):
    """The server refused the connection."""

    def __init__(self, response: Response) -> None:
        super().__init__(response)
        self.response = response

    def __str__(self) -> str:
        return f"server rejected WebSocket connection: HTTP {self.response.status_code:d}"


class InvalidHeader(InvalidHandshake):
    """A header is missing, empty, malformed, or has a value that is not allowed."""

    def __init__(self, name: str, value: str | None = None) -> None:
        super().__init__(name, value)
        self.name = name
        self.value = value

    def __str__(self) -> str:
        if self.value is None:
            return f"missing {self.name} header"
        return f"invalid {self.name} header: {self.value}" if self.value else f"empty {self.name} header"


class InvalidHeaderFormat(InvalidHeader):
    """A header does not match its grammar."""

    def __init__(self, name: str, error: str, header: str, pos: int) -> None:
        super().__init__(name, f"{error} at {pos} in {header}")
        self.args = (name, error, header, pos)


class InvalidHeaderValue(InvalidHeader):
    """A header has a value that is not allowed."""


class InvalidOrigin(InvalidHeader):
    """The request's Origin is not among those allowed."""

    def __init__(self, origin: str | None) -> None:
        super().__init__("Origin", origin)
        self.args = (origin,)


class InvalidUpgrade(InvalidHeader):
    """The Upgrade or Connection header is not right."""


class NegotiationError(InvalidHandshake):
    """No agreement on an extension or a subprotocol."""


class _InvalidParameter(NegotiationError):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class DuplicateParameter(_InvalidParameter):
    """An extension's parameter is there twice."""

    def __str__(self) -> str:
        return f"duplicate parameter: {self.name}"


class InvalidParameterName(_InvalidParameter):
    """An extension's parameter is not known."""

    def __str__(self) -> str:
        return f"invalid parameter name: {self.name}"


class InvalidParameterValue(NegotiationError):
    """An extension's parameter has a value that is not allowed."""

    def __init__(self, name: str, value: str | None) -> None:
        super().__init__(name, value)
        self.name = name
        self.value = value

    def __str__(self) -> str:
        if self.value is None:
            return f"missing value for parameter {self.name}"
        if not self.value:
            return f"empty value for parameter {self.name}"
        return f"invalid value for parameter {self.name}: {self.value}"


class ProtocolError(WebSocketException):
    """A frame, sent or received, breaks the protocol."""


class PayloadTooBig(WebSocketException):
    """A message or a frame is larger than allowed.

    Attributes:
        size: bytes that the frame announces; None where it is compressed.
        max_size: bytes that the message, or the frame, may have.
        current_size: bytes that the message had before this frame, or None.
    """

    def __init__(
        self, size_or_message: int | str | None, max_size: int | None = None, current_size: int | None = None
    ) -> None:
        super().__init__(size_or_message, max_size, current_size)
        self.message: str | None = None
        if isinstance(size_or_message, str):
            assert max_size is None
            assert current_size is None
            warnings.warn(
                "PayloadTooBig(message) is deprecated; change to PayloadTooBig(size, max_size)",
                DeprecationWarning,
                stacklevel=2,
            )
            self.message = size_or_message
            return
        assert max_size is not None
        self.size: int | None = size_or_message
        self.max_size: int = max_size
        self.current_size: int | None = None
        self.set_current_size(current_size)

    def __str__(self) -> str:
        if self.message is not None:
            return self.message
        size = "" if self.size is None else f"with {self.size} bytes "
        before = "" if self.current_size is None else f"after reading {self.current_size} bytes "
        return f"frame {size}{before}exceeds limit of {self.max_size} bytes"

    def set_current_size(self, current_size: int | None) -> None:
        """Say what the message had before this frame, which had so much less room."""
        assert self.current_size is None
        if current_size is not None:
            self.max_size += current_size
            self.current_size = current_size


class TooManyFragments(WebSocketException):
    """A message came in too many frames."""

    def __init__(self, max_fragments: int) -> None:
        super().__init__(f"fragmented message exceeds limit of {max_fragments} frames")


class InvalidState(WebSocketException, AssertionError):
    """A frame cannot be sent in the state that the connection is in."""


class ConcurrencyError(WebSocketException, RuntimeError):
    """Two tasks receive at once, or send where only one can."""


_LEGACY = "fabric.websockets.legacy.exceptions"
__getattr__ = lazy(
    __name__,
    {},
    dict.fromkeys(("AbortHandshake", "InvalidStatusCode", "RedirectHandshake", "WebSocketProtocolError"), _LEGACY),
)
