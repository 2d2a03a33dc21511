"""The interface of the package `websockets` (17.4), on fabric's core: the same names, parameters, exceptions and texts.

    from fabric.websockets import connect, serve

`install` makes `import websockets` mean this package, for programs that cannot be edited and for packages that import
it themselves; so does `python -m fabric run --as-websockets SCRIPT`.

How it is made. It is a sibling of fabric's own API, not a coat over it. A connection
(`asyncio.connection.Connection`) is a class of its own on `fabric_ext.plain_connection`: `recv`, `send` and iteration
are C methods that give and take str and bytes, and run on the same sessions, decoder and writer as `fabric.client` and
`fabric.server`. The opening handshake is Python of its own, with the limits, texts and hooks that programs know;
transports are the event loop's, made with the arguments that `connect` and `serve` pass on.

The threading interface (`sync`) is the same connection on an event loop that no thread runs: whichever thread waits for
something works on it, as with `fabric.sync`.

Not here: the Sans-I/O classes, the classes of the legacy interface (of which a few names are kept for annotations), and
trio. Asking for them says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabric.websockets._install import install
from fabric.websockets._lazy import lazy
from fabric.websockets.version import version as __version__

if TYPE_CHECKING:
    from fabric.websockets.asyncio.client import ClientConnection, connect, unix_connect
    from fabric.websockets.asyncio.router import Router, route, unix_route
    from fabric.websockets.asyncio.server import (
        Server,
        ServerConnection,
        basic_auth,
        broadcast,
        serve,
        unix_serve,
    )
    from fabric.websockets.datastructures import Headers, HeadersLike, MultipleValuesError
    from fabric.websockets.exceptions import (
        ConcurrencyError,
        ConnectionClosed,
        ConnectionClosedError,
        ConnectionClosedOK,
        DuplicateParameter,
        HeaderLineTooLong,
        InvalidHandshake,
        InvalidHeader,
        InvalidHeaderFormat,
        InvalidHeaderValue,
        InvalidMessage,
        InvalidMethod,
        InvalidOrigin,
        InvalidParameterName,
        InvalidParameterValue,
        InvalidProtocol,
        InvalidProxy,
        InvalidProxyMessage,
        InvalidProxyStatus,
        InvalidState,
        InvalidStatus,
        InvalidUpgrade,
        InvalidURI,
        NegotiationError,
        PayloadTooBig,
        ProtocolError,
        ProxyError,
        RequestLineTooLong,
        SecurityError,
        StatusLineTooLong,
        TooManyFragments,
        TooManyHeaders,
        WebSocketException,
    )
    from fabric.websockets.frames import Close, CloseCode, Frame, Opcode
    from fabric.websockets.http11 import Request, Response
    from fabric.websockets.protocol import State
    from fabric.websockets.typing import (
        Data,
        ExtensionName,
        ExtensionParameter,
        LoggerLike,
        Origin,
        StatusLike,
        Subprotocol,
    )

__all__ = [
    "ClientConnection",
    "Close",
    "CloseCode",
    "ConcurrencyError",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "Data",
    "DuplicateParameter",
    "ExtensionName",
    "ExtensionParameter",
    "Frame",
    "HeaderLineTooLong",
    "Headers",
    "HeadersLike",
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
    "LoggerLike",
    "MultipleValuesError",
    "NegotiationError",
    "Opcode",
    "Origin",
    "PayloadTooBig",
    "ProtocolError",
    "ProxyError",
    "Request",
    "RequestLineTooLong",
    "Response",
    "Router",
    "SecurityError",
    "Server",
    "ServerConnection",
    "State",
    "StatusLike",
    "StatusLineTooLong",
    "Subprotocol",
    "TooManyFragments",
    "TooManyHeaders",
    "WebSocketException",
    "__version__",
    "basic_auth",
    "broadcast",
    "connect",
    "install",
    "route",
    "serve",
    "unix_connect",
    "unix_route",
    "unix_serve",
]

_NAMES = {
    "asyncio.client": "connect unix_connect ClientConnection",
    "asyncio.router": "route unix_route Router",
    "asyncio.server": "basic_auth broadcast serve unix_serve ServerConnection Server",
    "datastructures": "Headers HeadersLike MultipleValuesError",
    "exceptions": """
        ConcurrencyError ConnectionClosed ConnectionClosedError ConnectionClosedOK DuplicateParameter HeaderLineTooLong
        InvalidHandshake InvalidHeader InvalidHeaderFormat InvalidHeaderValue InvalidMessage InvalidMethod InvalidOrigin
        InvalidParameterName InvalidParameterValue InvalidProtocol InvalidProxy InvalidProxyMessage InvalidProxyStatus
        InvalidState InvalidStatus InvalidUpgrade InvalidURI NegotiationError PayloadTooBig ProtocolError ProxyError
        RequestLineTooLong SecurityError StatusLineTooLong TooManyFragments TooManyHeaders WebSocketException
    """,
    "frames": "Close CloseCode Frame Opcode",
    "http11": "Request Response",
    "protocol": "State",
    "typing": "Data ExtensionName ExtensionParameter LoggerLike Origin StatusLike Subprotocol",
}
_DEPRECATED = {
    "legacy.client": "WebSocketClientProtocol",
    "legacy.exceptions": "AbortHandshake InvalidStatusCode RedirectHandshake WebSocketProtocolError",
    "legacy.protocol": "WebSocketCommonProtocol",
    "legacy.server": "WebSocketServer WebSocketServerProtocol",
}
_LEFT_OUT = (
    "ClientProtocol",
    "Protocol",
    "ServerProtocol",
    "Side",
    "BasicAuthWebSocketServerProtocol",
    "basic_auth_protocol_factory",
)

if not TYPE_CHECKING:

    def _by_name(table: dict[str, str]) -> dict[str, str]:
        return {name: f"{__name__}.{module}" for module, names in table.items() for name in names.split()}

    __getattr__ = lazy(__name__, _by_name(_NAMES), _by_name(_DEPRECATED), _LEFT_OUT)

    def __dir__() -> list[str]:
        return sorted(__all__)
