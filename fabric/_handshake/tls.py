"""The event loop as aiofastnet sees it: what TLS has to report, and is no news, stays here.

Owns one decision, which reports do not reach the loop's exception handler.
"""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["TlsLoop"]


class TlsLoop:
    """Stands for `loop`, and keeps from its exception handler that a peer hung up in the TLS handshake.

    aiofastnet 1.2 reports that as a fault, as asyncio's own TLS does, and gives the class ConnectionResetError
    where an error belongs, over which logging stumbles. Whoever connects is raised the error anyway; a server is
    left like that by every health check and port scan.
    """

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """For who asks `isinstance`: aiofastnet does something else with the loops of Windows."""
        return type(self._loop)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Pass on every report but that one; an error that is one, of whatever kind, is another."""
        if context.get("exception") is not ConnectionResetError:
            self._loop.call_exception_handler(context)
