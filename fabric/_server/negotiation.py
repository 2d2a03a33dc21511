"""What a server agrees to in the opening handshake (RFC 6455 §4.2.2): origin, headers, subprotocol, extensions.

Owns the rules of `ServerConfig` about a request and the response that accepts it. Never touches a socket, and knows of
no other connection.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from fabric._handshake.rules import Rejection, switching_protocols
from fabric._http.messages import encode_headers
from fabric.compression import HEADER as EXTENSIONS
from fabric.compression import Agreement, answer_offers
from fabric.error import Error, InvalidHeader, SubprotocolNegotiationFailed
from fabric.subprotocol import SubprotocolList, SubprotocolNegotiator

if TYPE_CHECKING:
    from fabric.config import CompressionConfig, ServerConfig
    from fabric.headers import HeaderMap
    from fabric_ext.http_head import RequestHead

__all__ = ["Negotiation"]

# Of the answer to an opening handshake, what is not the application's to write; and a 101 has no content.
OWN_FIELDS = frozenset(
    {
        "upgrade",
        "connection",
        "sec-websocket-accept",
        "sec-websocket-protocol",
        "sec-websocket-extensions",
        "content-type",
        "content-length",
    }
)

KNOWN_OFFERS = 64  # different Sec-WebSocket-Extensions whose answer is kept


class Negotiation:
    """Checks opening handshakes by a server's config, and agrees with the client on what follows.

    Args:
        config: of the server.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._origins = config.origins
        self._required_headers = config.required_headers
        self._response_fields = encode_headers(config.headers.items())  # of each 101
        self._subprotocols = SubprotocolNegotiator(config.subprotocols, required=config.require_subprotocol)
        # Most clients make one of a few offers.
        self._answer_offers = functools.lru_cache(KNOWN_OFFERS)(functools.partial(_answer, config.compression))

    def check(self, head: RequestHead) -> None:
        """Check the origin and the required headers of a request.

        Raises:
            Rejection: the server does not take it.
        """
        self._check_origin(head)
        self._check_required(head)

    def agree(
        self, head: RequestHead, more: HeaderMap | None, *, with_subprotocol: bool
    ) -> tuple[bytes, str | None, Agreement | None]:
        """Accept a valid opening handshake: the response, the subprotocol, and what is agreed on about compression.

        Args:
            more: header fields that `process_request` adds; of them `Sec-WebSocket-Protocol` chooses the subprotocol.
            with_subprotocol: False if the connection is not the application's, and so has none.

        Raises:
            Rejection: there is no subprotocol in common, or what the client offers is malformed.
            ValueError: the application chose a subprotocol that was not offered.
        """
        fields = self._response_fields
        chosen = None
        if more is not None:
            chosen = more.get("Sec-WebSocket-Protocol")
            fields += encode_headers((name, value) for name, value in more.items() if name.lower() not in OWN_FIELDS)
        subprotocol = self._select_subprotocol(head, chosen) if with_subprotocol else None
        agreement, extensions = self._answer_offers(*head.get_all(EXTENSIONS))
        return switching_protocols(head.key, fields, subprotocol, extensions), subprotocol, agreement

    def _check_origin(self, head: RequestHead) -> None:
        """RFC 6455 §10.2: browsers say which site's script connects."""
        allowed = self._origins
        if allowed is None:
            return
        origins = head.get_all("Origin")
        if len(origins) > 1:
            raise Rejection(403, "more than one Origin header")
        origin = origins[0] if origins else None
        for pattern in allowed:
            if isinstance(pattern, re.Pattern):
                if origin is not None and pattern.fullmatch(origin):
                    return
            elif origin == pattern:
                return
        raise Rejection(403, "this origin is not allowed")

    def _check_required(self, head: RequestHead) -> None:
        for name in self._required_headers:
            if not head.has(name):
                if name.lower() == "authorization":
                    raise Rejection(401, "authorization is required", [("WWW-Authenticate", "Bearer")])
                raise Rejection(400, f"the {name} header is required")

    def _select_subprotocol(self, head: RequestHead, chosen: str | None) -> str | None:
        lines = head.get_all("Sec-WebSocket-Protocol")
        if not lines and chosen is None and not self._subprotocols.required:
            return None
        try:
            offered = SubprotocolList.parse(lines)
            if chosen is None:
                return self._subprotocols.select(offered)
            if chosen not in offered:
                raise ValueError(f"process_request chose the subprotocol {chosen!r}, which was not offered")
            return chosen
        except SubprotocolNegotiationFailed as error:
            raise Rejection(400, str(error), logged="no subprotocol in common") from None
        except Error as error:
            what = "malformed Sec-WebSocket-Protocol"
            raise Rejection(400, f"{what}: {error}", logged=what) from None


def _answer(config: CompressionConfig, *offers: str) -> tuple[Agreement | None, str | None]:
    """What is agreed on with a client that sends `offers`, its Sec-WebSocket-Extensions, and the answer to them."""
    try:
        agreement = answer_offers(offers, config)
    except InvalidHeader as error:
        raise Rejection(400, str(error)) from None
    return agreement, None if agreement is None else str(agreement)
