"""Exceptions of the legacy interface, for `except` clauses: nothing here raises them."""

from __future__ import annotations

import http

from fabric.websockets.datastructures import Headers, HeadersLike
from fabric.websockets.exceptions import InvalidHandshake
from fabric.websockets.exceptions import ProtocolError as WebSocketProtocolError
from fabric.websockets.typing import StatusLike

__all__ = ["AbortHandshake", "InvalidStatusCode", "RedirectHandshake", "WebSocketProtocolError"]


class InvalidStatusCode(InvalidHandshake):
    """The server refused the connection; see `InvalidStatus`."""

    def __init__(self, status_code: int, headers: Headers) -> None:
        super().__init__(status_code, headers)
        self.status_code = status_code
        self.headers = headers

    def __str__(self) -> str:
        return f"server rejected WebSocket connection: HTTP {self.status_code}"


class AbortHandshake(InvalidHandshake):
    """A request is to be answered with a response; see `process_request`."""

    def __init__(self, status: StatusLike, headers: HeadersLike, body: bytes = b"") -> None:
        super().__init__(status, headers, body)
        self.status = http.HTTPStatus(status)
        self.headers = Headers(headers)
        self.body = body

    def __str__(self) -> str:
        return f"HTTP {self.status:d}, {len(self.headers)} headers, {len(self.body)} bytes"


class RedirectHandshake(InvalidHandshake):
    """The server answers with a redirect."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.uri = uri

    def __str__(self) -> str:
        return f"redirect to {self.uri}"
