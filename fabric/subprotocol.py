"""Subprotocols (RFC 6455 §1.9): lists of names in order of preference, and the choice among them.

Owns which names are valid, and which one both sides get. A list is made from header values, and `str()` makes one of
it; requests and responses are made elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from fabric.error import InvalidSubprotocol, SubprotocolNegotiationFailed
from fabric.headers import is_token, parse_list

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SubprotocolList", "SubprotocolNegotiator"]

HEADER = "Sec-WebSocket-Protocol"
ANY = "*"


class SubprotocolList(tuple[str, ...]):
    """Subprotocol names, the preferred one first: a tuple of distinct tokens. `str()` is the header's value.

    Raises:
        TypeError: `names` is one str, which would be taken letter by letter.
        InvalidSubprotocol: a name is not a token, or stands there twice (RFC 6455 §4.1, item 10).
    """

    __slots__ = ()

    def __new__(cls, names: Iterable[str] = ()) -> Self:
        if isinstance(names, (str, bytes)):
            raise TypeError(f"expected several subprotocols, not the one {type(names).__name__} {names!r}")
        subprotocols = super().__new__(cls, names)
        seen: set[str] = set()
        for name in subprotocols:
            if not isinstance(name, str) or not is_token(name) or name in seen:
                raise InvalidSubprotocol(name)
            seen.add(name)
        return subprotocols

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Self:
        """The offers of a request.

        Args:
            lines: the values of all its `Sec-WebSocket-Protocol` headers, which count as one list.

        Raises:
            InvalidSubprotocol: as above.
            InvalidHeader: the header is not a list (RFC 9110 §5.6.1).
        """
        return cls(parse_list(HEADER, lines))

    def __str__(self) -> str:
        return ", ".join(self)

    def __repr__(self) -> str:
        return f"SubprotocolList({list(self)!r})"

    def confirm(self, chosen: str | None) -> str | None:
        """Check, as the client that offered this list, what the server chose (RFC 6455 §4.1, last item 6).

        Returns:
            `chosen`; None, the server's right to choose none, included.

        Raises:
            SubprotocolNegotiationFailed: `chosen` was not offered.
        """
        if chosen is not None and chosen not in self:
            raise SubprotocolNegotiationFailed(f"the server chose {chosen!r}, which was not offered", self, (chosen,))
        return chosen


class SubprotocolNegotiator:
    """Chooses a subprotocol for a server (RFC 6455 §4.2.2, item 5).

    Args:
        supported: names the server speaks; "*" stands for every name.
        required: no common name is an error, and so is a client that offers none.

    Raises:
        InvalidSubprotocol: a name is not a token, or stands there twice.
    """

    __slots__ = ("required", "supported")

    def __init__(self, supported: Iterable[str], *, required: bool = False) -> None:
        self.supported = SubprotocolList(supported)
        self.required = required

    def __repr__(self) -> str:
        return f"SubprotocolNegotiator({list(self.supported)!r}, required={self.required!r})"

    def select(self, offered: Iterable[str]) -> str | None:
        """The first name among `offered`, the client's order of preference, that the server supports.

        Returns:
            The name, or None to go on without a subprotocol.

        Raises:
            SubprotocolNegotiationFailed: there is none, and one is required.
            TypeError, InvalidSubprotocol: `offered` is no list of names, as in `SubprotocolList`.
        """
        if not isinstance(offered, SubprotocolList):
            offered = SubprotocolList(offered)
        for name in offered:
            if name in self.supported or ANY in self.supported:
                return name
        if self.required:
            raise SubprotocolNegotiationFailed("no subprotocol in common", offered, self.supported)
        return None
