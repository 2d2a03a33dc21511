"""HTTP headers of the opening handshake: names, values, maps of them, and the grammar of list-valued ones.

Owns: which names and values may stand on a header line (RFC 9110 §5), and which must not be shown
(`is_sensitive`). Never sends or reads a request, never decides what a header means for the handshake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from multidict import CIMultiDict

from fabric._http.url import basic_authorization
from fabric.error import InvalidHeader

if TYPE_CHECKING:
    from multidict._abc import MDArg

__all__ = [
    "HeaderBuilders",
    "HeaderMap",
    "HeaderName",
    "HeaderValue",
    "HeadersLike",
    "ListItem",
    "is_sensitive",
    "is_token",
    "parse_items",
    "parse_list",
    "valid_headers",
]

HeadersLike = Mapping[str, str] | Iterable[tuple[str, str]] | None

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"  # RFC 9110 §5.6.2
_QUOTED = r'"(?:[^"\\]|\\.)*+"'  # RFC 9110 §5.6.4
_IS_TOKEN = re.compile(_TOKEN)
_ELEMENT = re.compile(rf'(?:[^",]|{_QUOTED})*+')
_HEAD = re.compile(rf"({_TOKEN})[ \t]*+")
_PARAMETER = re.compile(rf";[ \t]*+({_TOKEN})[ \t]*+(?:=[ \t]*+({_TOKEN}|{_QUOTED})[ \t]*+)?+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_COOKIE_VALUE = re.compile(r'[!#-+\--:<-\[\]-~]*+|"[!#-+\--:<-\[\]-~]*+"')  # RFC 6265 §4.1.1

_SENSITIVE = re.compile(
    r"(?:set-)?cookie2?|x-auth(?:-.*)?|.*(?:authorization|api-?key|token|secret|passw|session|credential).*",
    re.IGNORECASE,
)


def is_token(text: str) -> bool:
    """Whether `text` is a token (RFC 9110 §5.6.2), as header names and subprotocols are."""
    return _IS_TOKEN.fullmatch(text) is not None


def is_sensitive(name: str) -> bool:
    """Whether the value of the header `name` is a credential, and so is not to be shown or logged."""
    return _SENSITIVE.fullmatch(name) is not None


def _name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a header's name must be a str, not {type(name).__name__}")
    if not is_token(name):
        raise InvalidHeader(name, "a name must be a token (RFC 9110 §5.1)")
    return name


def _value(value: str, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"the value of header {name!r} must be a str, not {type(value).__name__}")
    if _CONTROL.search(value):
        raise InvalidHeader(name, "a value must not hold control characters (RFC 9110 §5.5)")
    return (value if value.isascii() else _encodable(value, name)).strip(" \t")


def _encodable(value: str, name: str) -> str:
    try:
        raw = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidHeader(name, "a value must not hold lone surrogates") from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


class HeaderName(str):
    """A header's name: a token. Compares as the `str` it is; `HeaderMap` ignores case.

    Raises:
        TypeError: not a str.
        InvalidHeader: not a token.
    """

    __slots__ = ()

    def __new__(cls, name: str) -> Self:
        return super().__new__(cls, _name(name))


class HeaderValue(str):
    """A header's value: one line, without surrounding blanks.

    Bytes outside ASCII that a transport decoded with `surrogateescape` are read as UTF-8, or else as Latin-1.

    Args:
        value: the text.
        name: the header it is for, to be named in the error.

    Raises:
        TypeError: not a str.
        InvalidHeader: it holds CR, LF, NUL or another control character but TAB (RFC 9110 §5.5).
    """

    __slots__ = ()

    def __new__(cls, value: str, name: str = "") -> Self:
        return super().__new__(cls, _value(value, name))


class ListItem(NamedTuple):
    """One element of a list-valued header: `permessage-deflate; client_max_window_bits; x=10`.

    Attributes:
        name: the token it starts with.
        parameters: names and values in order, duplicates kept; None where there is no value.
    """

    name: str
    parameters: tuple[tuple[str, str | None], ...] = ()

    def __str__(self) -> str:
        return "; ".join([self.name, *(k if v is None else f"{k}={_quote(v)}" for k, v in self.parameters)])


def _quote(value: str) -> str:
    return value if is_token(value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def parse_list(name: str, lines: Iterable[str]) -> list[str]:
    """The elements of a list-valued header (RFC 9110 §5.6.1).

    Args:
        name: the header, to be named in the error.
        lines: the values of all its lines, which count as one list.

    Raises:
        InvalidHeader: a quoted string does not end.
    """
    elements = []
    for line in lines:
        at = 0
        while at <= len(line):
            match = _ELEMENT.match(line, at)
            assert match is not None  # it can match nothing at all
            at = match.end() + 1
            if at <= len(line) and line[at - 1] != ",":
                raise InvalidHeader(name, "a quoted string does not end")
            if element := match[0].strip(" \t"):  # recipients must accept empty elements (§5.6.1.2)
                elements.append(element)
    return elements


def parse_items(name: str, lines: Iterable[str]) -> list[ListItem]:
    """The elements of a header such as `Sec-WebSocket-Extensions` (RFC 6455 §9.1), with their parameters.

    Raises:
        InvalidHeader: an element is not a token followed by `; name`, `; name=token` or `; name="quoted"`.
    """
    return [_parse_item(name, element) for element in parse_list(name, lines)]


def _parse_item(name: str, element: str) -> ListItem:
    head = _HEAD.match(element)
    if head is None:
        raise InvalidHeader(name, "an element does not start with a token")
    parameters: list[tuple[str, str | None]] = []
    at = head.end()
    while at < len(element):
        match = _PARAMETER.match(element, at)
        if match is None:
            raise InvalidHeader(name, f"the parameters of {head[1][:40]!r} are not of the form '; name=value'")
        key, value = match[1], match[2]
        if value is not None and value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        parameters.append((key, value))
        at = match.end()
    return ListItem(head[1], tuple(parameters))


class HeaderBuilders:
    """The `with_...` methods that set common headers; each returns a changed copy."""

    __slots__ = ()

    def _get_headers(self) -> HeaderMap:
        raise NotImplementedError

    def _set_headers(self, headers: HeaderMap) -> Self:
        raise NotImplementedError

    def with_header(self, name: str, value: str) -> Self:
        """Add one header; those of the same name stay."""
        headers = HeaderMap(self._get_headers())
        headers.add(name, value)
        return self._set_headers(headers)

    def _with_single(self, name: str, value: str) -> Self:
        headers = HeaderMap(self._get_headers())
        headers[name] = value
        return self._set_headers(headers)

    def with_authorization(self, credentials: str) -> Self:
        """Set `Authorization` to the whole value, as in "Bearer xyz"."""
        return self._with_single("Authorization", credentials)

    def with_bearer(self, token: str) -> Self:
        """Set `Authorization` to a bearer token (RFC 6750)."""
        return self.with_authorization(f"Bearer {token}")

    def with_basic_auth(self, username: str, password: str) -> Self:
        """Set `Authorization` to a user name and password (RFC 7617)."""
        return self.with_authorization(basic_authorization(username, password))

    def with_user_agent(self, product: str) -> Self:
        """Set `User-Agent`."""
        return self._with_single("User-Agent", product)

    def with_origin(self, origin: str) -> Self:
        """Set `Origin` (RFC 6454), as in "https://example.com"."""
        return self._with_single("Origin", origin)

    def with_cookie(self, name: str, value: str | None = None) -> Self:
        """Add a cookie to the one `Cookie` header (RFC 6265 §5.4).

        Args:
            name: the cookie's name; or, without `value`, whole pairs as in "a=1; b=2".
            value: its value.

        Raises:
            InvalidHeader: name or value hold characters that a cookie cannot.
        """
        if value is None:
            pairs = name
        elif is_token(name) and _COOKIE_VALUE.fullmatch(value):
            pairs = f"{name}={value}"
        else:
            raise InvalidHeader("Cookie", "a cookie's name must be a token, its value without blanks and any of \",;\\")
        before = self._get_headers().get("Cookie")
        return self._with_single("Cookie", f"{before}; {pairs}" if before else pairs)

    def with_api_key(self, key: str) -> Self:
        """Set `X-API-Key`."""
        return self._with_single("X-API-Key", key)


class HeaderMap(HeaderBuilders, CIMultiDict[str]):
    """Headers: a `CIMultiDict` (case-insensitive, several values to a name) that takes only what may be sent.

    `add` keeps what is there, `[name] = value` replaces it, `getall` gives every value. Everything put in is
    checked as `HeaderName` and `HeaderValue` are; the repr shows no credentials. The views that `items` and
    `values` return are those of `CIMultiDict`, and show everything.
    """

    __slots__ = ()

    def __init__(self, arg: MDArg[str] = None, /, **kwargs: str) -> None:
        super().__init__(_checked(arg, kwargs))

    def add(self, name: str, value: str) -> None:
        super().add(_name(name), _value(value, name))

    def __setitem__(self, name: str, value: str) -> None:
        super().__setitem__(_name(name), _value(value, name))

    def setdefault(self, name: str, default: str | None = None) -> str:
        if name not in self:
            self.add(name, default)  # type: ignore[arg-type]  # None ends in the TypeError of HeaderValue
        return self[name]

    def extend(self, arg: MDArg[str] = None, /, **kwargs: str) -> None:
        super().extend(_checked(arg, kwargs))

    def update(self, arg: MDArg[str] = None, /, **kwargs: str) -> None:
        super().update(_checked(arg, kwargs))

    def merge(self, arg: MDArg[str] = None, /, **kwargs: str) -> None:
        super().merge(_checked(arg, kwargs))

    def __repr__(self) -> str:
        return f"HeaderMap({[(k, '***' if is_sensitive(k) else v) for k, v in self.items()]!r})"

    def with_headers(self, headers: HeadersLike) -> Self:
        """Take `headers` instead of all that are there, as `ClientConfig.with_headers` does; None = none."""
        return type(self)(headers)

    def get_list(self, name: str) -> list[str]:
        """The elements of a list-valued header, from all its lines; see `parse_list`."""
        return parse_list(name, self.getall(name, ()))

    def _get_headers(self) -> HeaderMap:
        return self

    def _set_headers(self, headers: HeaderMap) -> Self:
        return type(self)(headers)


def valid_headers(pairs: Iterable[tuple[str, str]]) -> HeaderMap:
    """A map of headers that were found valid when they were read, and so are not checked one by one again."""
    headers = HeaderMap.__new__(HeaderMap)
    CIMultiDict.__init__(headers, pairs)
    return headers


def _checked(arg: Any, kwargs: Mapping[str, str]) -> list[tuple[str, str]]:
    """Everything that a multidict's constructor takes, as checked pairs."""
    if arg is None:
        pairs: Iterable[tuple[str, str]] = ()
    elif isinstance(arg, Mapping):
        pairs = arg.items()
    elif hasattr(arg, "keys"):
        pairs = zip(arg.keys(), map(arg.__getitem__, arg.keys()), strict=True)
    else:
        pairs = arg
    return [(_name(name), _value(value, name)) for name, value in (*pairs, *kwargs.items())]
