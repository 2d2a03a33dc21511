"""One attempt to connect, on the client's side: from the name lookup to 101, within one deadline.

Owns the request, the judgement of the answer (RFC 6455 §4.1) and redirects. How bytes get to the server is
`fabric._handshake.dial`'s, when to try again the client's.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fabric._connection import tracing
from fabric._handshake.dial import Progress, dial
from fabric._handshake.response_reader import ResponseReader
from fabric._handshake.rules import HEAD_END, check_response
from fabric._http.messages import headers_of
from fabric._version import VERSION
from fabric.compression import HEADER as EXTENSIONS
from fabric.compression import accept_answer, make_offer
from fabric.error import HandshakeFailed, Timeout
from fabric.subprotocol import HEADER as SUBPROTOCOL
from fabric_ext.receive_queue import fresh

if TYPE_CHECKING:
    from fabric._http.url import Url
    from fabric.config import ClientConfig
    from fabric_ext.deflate import Codec
    from fabric_ext.http_head import ResponseHead

__all__ = ["HandshakeResult", "open_connection"]

USER_AGENT = f"websocket-fabric/{VERSION}"

REDIRECTS = frozenset({301, 302, 303, 307, 308})


class HandshakeResult:
    """What an opening handshake has agreed on, and the heads of its request and response."""

    __slots__ = ("address", "codec", "request", "response", "subprotocol")

    def __init__(
        self, address: Url, request: bytes, response: bytes, subprotocol: str | None, codec: Codec | None
    ) -> None:
        self.address = address
        self.request = request
        self.response = response
        self.subprotocol = subprotocol
        self.codec = codec


Accepted = Callable[[Any, HandshakeResult, bytes], None]


class ClientHandshake(ResponseReader):
    """The protocol of a transport from the request to 101; then a session takes over."""

    def __init__(self, address: Url, config: ClientConfig, accepted: Accepted) -> None:
        super().__init__("the server", str(address))
        self._address = address
        self._config = config
        self._accepted = accepted
        self._key = ""
        self._request = b""

    def ask(self) -> None:
        """Send the request."""
        headers = self._config.request_headers(self._address)
        headers.setdefault("User-Agent", USER_AGENT)
        if self._config.subprotocols:
            headers[SUBPROTOCOL] = str(self._config.subprotocols)
        offer = make_offer(self._config.compression)
        if offer is not None:
            headers[EXTENSIONS] = offer
        if tracing.tracer is not None:
            tracing.tracer.add_context(headers)
        self._key = base64.b64encode(os.urandom(16)).decode("ascii")
        fields = [
            f"GET {self._address.resource} HTTP/1.1",
            f"Host: {self._address.authority}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {self._key}",
            "Sec-WebSocket-Version: 13",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self._request = "\r\n".join(fields).encode("utf-8", "surrogateescape")
        self.transport.write(self._request + HEAD_END)

    def _is_success(self, status: int) -> bool:
        return status == 101

    def _accept(self, head: ResponseHead, rest: bytes) -> None:
        check_response(head, self._key)
        chosen = head.get_all(SUBPROTOCOL)
        if len(chosen) > 1:
            what = "the server chose more than one subprotocol"
            raise HandshakeFailed(what, status=head.status, headers=headers_of(head.data))
        subprotocol = self._config.subprotocols.confirm(chosen[0] if chosen else None)
        agreement = accept_answer(head.get_all(EXTENSIONS), self._config.compression)
        codec = None if agreement is None else agreement.codec(self._config.compression, "client")
        # In this very step: a frame that comes right behind the head must find its reader.
        self._accepted(
            self.transport, HandshakeResult(self._config.address, self._request, head.data, subprotocol, codec), rest
        )


async def open_connection(config: ClientConfig, accepted: Accepted) -> None:
    """Connect, and follow redirects, within `config.connection_timeout`.

    Cancelling it leaves neither socket nor task behind. `accepted` has been called when it
    returns.

    Args:
        config: where to and how.
        accepted: called with the transport, what was agreed on, and the bytes that came behind the response.

    Raises:
        Timeout: naming the phase that took too long.
        ConnectionFailed, Tls, HandshakeFailed, AuthenticationFailed, SubprotocolNegotiationFailed, Io,
        NotSupported: as their names say.
    """
    progress = Progress()
    limit = asyncio.timeout(config.connection_timeout)
    try:
        async with limit:
            await _follow(config, accepted, progress)
    except TimeoutError:
        if not limit.expired():
            raise
        # A server that said no, and then took its time over the reasons, did not time out.
        refused = None if progress.reader is None else progress.reader.refusal_so_far()
        raise refused or Timeout(progress.phase, config.connection_timeout) from None


async def _follow(config: ClientConfig, accepted: Accepted, progress: Progress) -> None:
    progress.phase = "asking the application for url and headers"
    config = await config.settled()
    address = config.address
    followed = 0
    while (redirect := await _attempt(address, config, accepted, progress)) is not None:
        # A socket or a path that was given leads to one server, whatever name the redirect has.
        if config.sock is not None or config.unix_path is not None or not config.max_redirects:
            raise fresh(redirect)
        if followed == config.max_redirects:
            raise _not_followed(redirect, f"more than {followed} redirects")
        address = _target(address, redirect)
        followed += 1


def _target(address: Url, redirect: HandshakeFailed) -> Url:
    """Where `redirect`, the answer of `address`, leads."""
    location = None if redirect.headers is None else redirect.headers.get("Location")
    if location is None:
        raise fresh(redirect)
    try:
        return address.join(location)
    except ValueError as error:
        raise _not_followed(redirect, str(error)) from None


def _not_followed(redirect: HandshakeFailed, why: str) -> HandshakeFailed:
    return HandshakeFailed(f"{redirect}: {why}", status=redirect.status, headers=redirect.headers, body=redirect.body)


async def _attempt(
    address: Url, config: ClientConfig, accepted: Accepted, progress: Progress
) -> HandshakeFailed | None:
    """Open a connection to `address`, or return the redirect that it answers."""
    handshake = ClientHandshake(address, config, accepted)
    progress.reader = None
    try:
        await dial(address, config, handshake, progress)
        progress.phase = f"opening handshake with {address.authority}"
        progress.reader = handshake
        handshake.ask()
        try:
            await handshake.wait()
        except HandshakeFailed as error:
            if error.status not in REDIRECTS:
                raise
            return error
    except BaseException:
        handshake.abort()
        raise
    return None
