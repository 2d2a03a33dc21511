"""What the two ends of an opening handshake ask for, check and agree on (RFC 6455 §4).

Owns what belongs to one connection's handshake: configuration, key, and what was agreed on. Does no I/O. It is the
`protocol` of a connection, as far as programs look at that.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import http
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from fabric._handshake.rules import accept_key
from fabric.headers import is_sensitive
from fabric.websockets.datastructures import Headers, MultipleValuesError
from fabric.websockets.exceptions import (
    InvalidHandshake,
    InvalidHeader,
    InvalidHeaderValue,
    InvalidMethod,
    InvalidOrigin,
    InvalidProtocol,
    InvalidStatus,
    InvalidUpgrade,
    NegotiationError,
)
from fabric.websockets.extensions.base import ClientExtensionFactory, Extension, ServerExtensionFactory
from fabric.websockets.extensions.permessage_deflate import PerMessageDeflate
from fabric.websockets.headers import (
    build_authorization_basic,
    build_extension,
    build_host,
    build_subprotocol,
    parse_connection,
    parse_extension,
    parse_subprotocol,
    parse_upgrade,
)
from fabric.websockets.http11 import Request, Response
from fabric.websockets.typing import LoggerLike, Origin, StatusLike, Subprotocol
from fabric.websockets.uri import WebSocketURI
from fabric_ext.deflate import Codec

__all__ = ["ClientNegotiation", "MaxSize", "Negotiation", "ServerNegotiation", "refuse_legacy", "reject"]

MaxSize = int | None | tuple[int | None, int | None]

_QUERY = re.compile(r"\?\S*")


class Negotiation:
    """What both sides have.

    Attributes:
        is_client: which side this is.
        logger: for the connection.
        max_message_size, max_fragment_size: bytes of a message, and of a frame, received; None for no limit.
        extensions, subprotocol: what was agreed on.
        handshake_exc: why the handshake failed, or None.
    """

    is_client: bool

    def __init__(self, max_size: MaxSize, logger: LoggerLike | None, name: str) -> None:
        self.max_message_size, self.max_fragment_size = max_size if isinstance(max_size, tuple) else (max_size, None)
        self.logger: LoggerLike = logging.getLogger(name) if logger is None else logger
        self.extensions: list[Extension] = []
        self.subprotocol: Subprotocol | None = None
        self.handshake_exc: Exception | None = None

    @property
    def debug(self) -> bool:
        """Is anybody interested in the details?"""
        return self.logger.isEnabledFor(logging.DEBUG)

    def codec(self) -> Codec | None:
        """What compresses messages, or None."""
        return next((each.codec() for each in self.extensions if isinstance(each, PerMessageDeflate)), None)

    def log_head(self, arrow: str, first: str, headers: Headers) -> None:
        """Write a head to the log, at DEBUG; unlike `websockets`, without what may be secret: queries, credentials."""
        if self.debug:
            self.logger.debug("%s %s", arrow, _QUERY.sub("?***", first))
            for name, value in headers.raw_items():
                self.logger.debug("%s %s: %s", arrow, name, "***" if is_sensitive(name) else value)


class ClientNegotiation(Negotiation):
    """One attempt of a client; the arguments are those of `connect`."""

    is_client = True

    def __init__(
        self,
        uri: WebSocketURI,
        *,
        origin: Origin | None = None,
        extensions: Sequence[ClientExtensionFactory] | None = None,
        subprotocols: Sequence[Subprotocol] | None = None,
        max_size: MaxSize = 2**20,
        logger: LoggerLike | None = None,
    ) -> None:
        super().__init__(max_size, logger, "websockets.client")
        self.uri = uri
        self.origin = origin
        self.available_extensions = extensions
        self.available_subprotocols = subprotocols
        self.key = base64.b64encode(secrets.token_bytes(16)).decode()

    def request(self) -> Request:
        """The request that opens a connection (RFC 6455 §4.1)."""
        headers = Headers()
        headers["Host"] = build_host(self.uri.host, self.uri.port, self.uri.secure)
        if self.uri.user_info is not None:
            headers["Authorization"] = build_authorization_basic(*self.uri.user_info)
        if self.origin is not None:
            headers["Origin"] = self.origin
        headers["Upgrade"] = "websocket"
        headers["Connection"] = "Upgrade"
        headers["Sec-WebSocket-Key"] = self.key
        headers["Sec-WebSocket-Version"] = "13"
        if self.available_extensions is not None:
            offers = [(each.name, each.get_request_params()) for each in self.available_extensions]
            headers["Sec-WebSocket-Extensions"] = build_extension(offers)
        if self.available_subprotocols is not None:
            headers["Sec-WebSocket-Protocol"] = build_subprotocol(self.available_subprotocols)
        return Request(self.uri.resource_name, headers)

    def check(self, response: Response) -> None:
        """Judge the server's response, and take note of what is agreed on.

        Raises:
            InvalidHandshake: it is a refusal, or not the answer to our request.
        """
        if response.status_code != 101:
            raise InvalidStatus(response)
        headers = response.headers
        _check_upgrade(headers)
        accept = _only_value(headers, "Sec-WebSocket-Accept")
        if accept != accept_key(self.key):
            raise InvalidHeaderValue("Sec-WebSocket-Accept", accept)
        self.extensions = self._agree_extensions(headers.get_all("Sec-WebSocket-Extensions"))
        self.subprotocol = self._agree_subprotocol(headers.get_all("Sec-WebSocket-Protocol"))

    def _agree_extensions(self, values: list[str]) -> list[Extension]:
        agreed: list[Extension] = []
        if values and self.available_extensions is None:
            raise NegotiationError("no extensions supported")
        for name, params in _joined(parse_extension, values):
            for factory in self.available_extensions or ():
                if factory.name == name:
                    try:
                        agreed.append(factory.process_response_params(params, agreed))
                    except NegotiationError:
                        continue
                    break
            else:
                raise NegotiationError(f"Unsupported extension: name = {name}, params = {params}")
        return agreed

    def _agree_subprotocol(self, values: list[str]) -> Subprotocol | None:
        if not values:
            return None
        if self.available_subprotocols is None:
            raise NegotiationError("no subprotocols supported")
        chosen = _joined(parse_subprotocol, values)
        if len(chosen) > 1:
            raise InvalidHeader("Sec-WebSocket-Protocol", f"multiple values: {', '.join(chosen)}")
        if chosen[0] not in self.available_subprotocols:
            raise NegotiationError(f"unsupported subprotocol: {chosen[0]}")
        return Subprotocol(chosen[0])


class ServerNegotiation(Negotiation):
    """One connection of a server; the arguments are those of `serve`, `select_subprotocol` without the connection."""

    is_client = False

    def __init__(
        self,
        *,
        origins: Sequence[Origin | re.Pattern[str] | None] | None = None,
        extensions: Sequence[ServerExtensionFactory] | None = None,
        subprotocols: Sequence[Subprotocol] | None = None,
        select_subprotocol: Callable[[Sequence[Subprotocol]], Subprotocol | None] | None = None,
        max_size: MaxSize = 2**20,
        logger: LoggerLike | None = None,
    ) -> None:
        super().__init__(max_size, logger, "websockets.server")
        self.origins = origins
        self.origin: Origin | None = None
        self.available_extensions = extensions
        self.available_subprotocols = subprotocols
        self._select = select_subprotocol
        self.was_asked = False  # was the request judged as an opening handshake?

    def accept(self, request: Request) -> Response:
        """Judge a request: a response with 101, or one that says why not."""
        self.was_asked = True
        failed = "Failed to open a WebSocket connection"
        try:
            accept, extensions = self._check(request)
        except InvalidOrigin as exc:
            return self._refuse(http.HTTPStatus.FORBIDDEN, exc, "invalid origin", f"{failed}: {exc}.\n")
        except InvalidMethod as exc:
            response = self._refuse(http.HTTPStatus.METHOD_NOT_ALLOWED, exc, "invalid method", f"{failed}: {exc}.\n")
            response.headers["Allow"] = "GET"
            return response
        except InvalidProtocol as exc:
            status = http.HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
            return self._refuse(status, exc, "invalid protocol", f"{failed}: {exc}.\n")
        except InvalidUpgrade as exc:
            text = (
                f"{failed}: {exc}.\n\nYou cannot access a WebSocket server directly with a browser."
                " You need a WebSocket client.\n"
            )
            response = self._refuse(http.HTTPStatus.UPGRADE_REQUIRED, exc, "invalid upgrade", text)
            response.headers["Upgrade"] = "websocket"
            return response
        except InvalidHandshake as exc:
            why, cause = str(exc), exc.__cause__
            while cause is not None:
                why, cause = f"{why}; {cause}", cause.__cause__
            return self._refuse(http.HTTPStatus.BAD_REQUEST, exc, "invalid handshake", f"{failed}: {why}.\n")
        except Exception as exc:
            self.handshake_exc = exc
            self.logger.error("opening handshake failed", exc_info=True)
            return reject(http.HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL_ERROR)
        headers = Headers()
        headers["Date"] = email.utils.formatdate(usegmt=True)
        headers["Upgrade"] = "websocket"
        headers["Connection"] = "Upgrade"
        headers["Sec-WebSocket-Accept"] = accept
        if extensions is not None:
            headers["Sec-WebSocket-Extensions"] = extensions
        if self.subprotocol is not None:
            headers["Sec-WebSocket-Protocol"] = self.subprotocol
        return Response(101, "Switching Protocols", headers)

    def _refuse(self, status: http.HTTPStatus, exc: Exception, what: str, text: str) -> Response:
        self.handshake_exc = exc
        if self.debug:
            self.logger.debug("! %s", what, exc_info=True)
        return reject(status, text)

    def _check(self, request: Request) -> tuple[str, str | None]:
        """RFC 6455 §4.2.1: the values of Sec-WebSocket-Accept and Sec-WebSocket-Extensions of the answer."""
        if request.method != "GET":
            raise InvalidMethod(request.method)
        if request.protocol != "HTTP/1.1":
            raise InvalidProtocol(request.protocol)
        headers = request.headers
        _check_upgrade(headers)
        key = _only_value(headers, "Sec-WebSocket-Key")
        try:
            size = len(base64.b64decode(key.encode(), validate=True))
        except binascii.Error as exc:
            raise InvalidHeaderValue("Sec-WebSocket-Key", key) from exc
        if size != 16:
            raise InvalidHeaderValue("Sec-WebSocket-Key", key)
        version = _only_value(headers, "Sec-WebSocket-Version")
        if version != "13":
            raise InvalidHeaderValue("Sec-WebSocket-Version", version)
        self.origin = self._check_origin(headers)
        extensions, self.extensions = self._agree_extensions(headers.get_all("Sec-WebSocket-Extensions"))
        offered = _joined(parse_subprotocol, headers.get_all("Sec-WebSocket-Protocol"))
        self.subprotocol = self._agree_subprotocol(offered) if self._select is None else self._select(offered)
        return accept_key(key), extensions

    def _check_origin(self, headers: Headers) -> Origin | None:
        """RFC 6455 §10.2."""
        try:
            origin = cast("Origin | None", headers.get("Origin"))
        except MultipleValuesError:
            raise InvalidHeader("Origin", "multiple values") from None
        if self.origins is None:
            return origin
        for allowed in self.origins:
            if allowed == origin or (
                isinstance(allowed, re.Pattern) and origin is not None and allowed.fullmatch(origin) is not None
            ):
                return origin
        raise InvalidOrigin(origin)

    def _agree_extensions(self, values: list[str]) -> tuple[str | None, list[Extension]]:
        answers: list[Any] = []
        agreed: list[Extension] = []
        if self.available_extensions:
            for name, params in _joined(parse_extension, values):
                for factory in self.available_extensions:
                    if factory.name == name:
                        try:
                            answer, extension = factory.process_request_params(params, agreed)
                        except NegotiationError:
                            continue
                        answers.append((name, answer))
                        agreed.append(extension)
                        break
        return build_extension(answers) if answers else None, agreed

    def _agree_subprotocol(self, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        """The first of ours that is offered."""
        if not self.available_subprotocols:
            return None
        if not offered:
            raise NegotiationError("missing subprotocol")
        for name in self.available_subprotocols:
            if name in offered:
                return name
        raise NegotiationError(f"invalid subprotocol; expected one of {', '.join(self.available_subprotocols)}")


# Arguments of the legacy interface, and what does the same now.
_LEGACY = {
    "extra_headers": "additional_headers on a client, process_response on a server",
    "create_protocol": "create_connection",
    "klass": "create_connection",
    "timeout": "close_timeout",
    "read_limit": "max_queue",
    "legacy_recv": "nothing",
    "loop": "nothing: the running one is taken",
}


def refuse_legacy(function: str, arguments: Iterable[str]) -> None:
    """Raise TypeError for an argument of the legacy interface, which the event loop would not know either."""
    for name in arguments:
        if name in _LEGACY:
            raise TypeError(f"{function}() has no argument {name!r} any more; instead of it: {_LEGACY[name]}")


INTERNAL_ERROR = "Failed to open a WebSocket connection.\nSee server log for more information.\n"


def reject(status: StatusLike, text: str) -> Response:
    """A response in plain text."""
    status = http.HTTPStatus(status)
    body = text.encode()
    headers = Headers()
    headers["Date"] = email.utils.formatdate(usegmt=True)
    headers["Connection"] = "close"
    headers["Content-Length"] = str(len(body))
    headers["Content-Type"] = "text/plain; charset=utf-8"
    return Response(status.value, status.phrase, headers, body)


def _joined(parse: Callable[[str], Sequence[Any]], values: Iterable[str]) -> list[Any]:
    """The items of a list that may be cut into several lines (RFC 9110 §5.3)."""
    return [item for value in values for item in parse(value)]


def _only_value(headers: Headers, name: str) -> str:
    values = headers.get_all(name)
    if not values:
        raise InvalidHeader(name)
    if len(values) > 1:
        raise InvalidHeader(name, "multiple values")
    return values[0]


def _check_upgrade(headers: Headers) -> None:
    options = _joined(parse_connection, headers.get_all("Connection"))
    if all(option.lower() != "upgrade" for option in options):
        raise InvalidUpgrade("Connection", ", ".join(options) or None)
    protocols = _joined(parse_upgrade, headers.get_all("Upgrade"))
    if [protocol.lower() for protocol in protocols] != ["websocket"]:
        raise InvalidUpgrade("Upgrade", ", ".join(protocols) or None)
