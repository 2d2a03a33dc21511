"""HTTP Basic authentication of a server's clients (RFC 7617).

Owns `basic_auth`, which makes a `process_request`. A client sends the credentials that stand in its URL.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from fabric._http.messages import Request, Response

__all__ = ["basic_auth"]

Credentials = tuple[str, str]
Check = Callable[[str, str], bool | Awaitable[bool]]


def basic_auth(
    realm: str = "",
    credentials: Credentials | Iterable[Credentials] | Mapping[str, str] | None = None,
    check_credentials: Check | None = None,
) -> Callable[[Request], Any]:
    """A `process_request` that lets only those in who know a user name and its password; others get 401.

        server = WebSocketServer.bind(address, handler, process_request=basic_auth(credentials={"ada": "s3cret"}))

    `client.state_data["username"]` is who it is. Passwords go over the wire as they are: serve `wss://`, or behind a
    proxy that ends TLS.

    Args:
        realm: what the password is for, shown by browsers.
        credentials: pairs of user name and password, one or several, or a dict of them.
        check_credentials: instead of `credentials`: called with user name and password; returns whether they are right.
            A plain or a coroutine function.

    Raises:
        TypeError, ValueError: neither or both are given, or of the wrong kind; a realm that no header can hold.
    """
    if (credentials is None) == (check_credentials is None):
        raise ValueError("give either credentials or check_credentials")
    if not realm.isprintable() or not realm.isascii():
        raise ValueError(f"realm = {realm!r}: expected printable ASCII")
    if check_credentials is None:
        check: Check = _among(_known(credentials))
    elif callable(check_credentials):
        check = check_credentials
    else:
        raise TypeError(f"check_credentials must be callable, not {type(check_credentials).__name__}")
    quoted = realm.replace("\\", "\\\\").replace('"', '\\"')
    challenge = {"WWW-Authenticate": f'Basic realm="{quoted}", charset="UTF-8"'}

    def refused(why: str) -> Response:
        return Response(401, challenge, f"{why}\n")

    def decided(request: Request, username: str, is_right: bool) -> Response | None:
        if not is_right:
            return refused("wrong user name or password")
        request.state["username"] = username
        return None

    async def decided_later(request: Request, username: str, answer: Awaitable[bool]) -> Response | None:
        return decided(request, username, await answer)

    def process_request(request: Request) -> Any:
        values = request.headers.getall("Authorization", [])
        if not values:
            return refused("a user name and a password are required")
        given = _parse(values[0]) if len(values) == 1 else None
        if given is None:
            return refused("malformed credentials")
        answer = check(*given)
        if inspect.isawaitable(answer):
            return decided_later(request, given[0], answer)
        return decided(request, given[0], answer)

    return process_request


def _known(credentials: Any) -> dict[bytes, bytes]:
    """The passwords by user name, both as bytes."""
    if isinstance(credentials, Mapping):
        pairs = list(credentials.items())
    elif not isinstance(credentials, Iterable) or isinstance(credentials, (str, bytes)) or _is_pair(credentials):
        pairs = [credentials]
    else:
        pairs = list(credentials)
    known = {}
    for pair in pairs:
        if not _is_pair(pair):
            raise TypeError("credentials are pairs (user name, password) of str, or a dict of them")
        username, password = pair
        if ":" in username:
            raise ValueError("a user name with a colon cannot be sent (RFC 7617 §2)")
        known[username.encode()] = password.encode()
    return known


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _among(known: dict[bytes, bytes]) -> Check:
    """Whether a password is its user's. It takes as long for a user name that is not known."""

    def check(username: str, password: str) -> bool:
        expected = known.get(username.encode())
        is_right = hmac.compare_digest(password.encode(), expected or b"")
        return is_right and expected is not None

    return check


def _parse(value: str) -> Credentials | None:
    """User name and password of an `Authorization` header; None where it holds none."""
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(token.strip(" ").encode("ascii"), validate=True).decode()
    except (ValueError, binascii.Error):  # UnicodeError is a ValueError
        return None
    username, colon, password = text.partition(":")
    return (username, password) if colon else None
