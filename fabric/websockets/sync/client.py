"""Names of the threading client, for packages that import them beside the asyncio ones. Calling them says so."""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["ClientConnection", "connect", "unix_connect"]


class ClientConnection:
    """A connection of the threading client, for annotations; there are none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse()


def connect(*args: Any, **kwargs: Any) -> NoReturn:
    """Raise NotImplementedError: only the asyncio interface is here."""
    _refuse()


def unix_connect(*args: Any, **kwargs: Any) -> NoReturn:
    """Raise NotImplementedError: only the asyncio interface is here."""
    _refuse()


def _refuse() -> NoReturn:
    raise NotImplementedError(
        "fabric.websockets has no threading interface yet: use fabric.websockets.asyncio, or websockets itself"
    )
