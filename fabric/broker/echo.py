"""A message that a server publishes to itself through its broker, to see that it still receives messages."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets

from fabric.broker.patience import answered
from fabric_ext.remote import wrap

__all__ = ["Echo"]

KIND = 3  # of envelopes, see fabric_ext.remote: other servers, which may receive it by a pattern, ignore it


class Echo:
    """A topic that only one server uses, and the message on it that is awaited.

    Attributes:
        topic: what it is published to; the adapter subscribes to it.
    """

    def __init__(self) -> None:
        self.topic = f"$echo.{secrets.token_hex(8)}"
        self._node = secrets.token_bytes(8)
        self._numbers = itertools.count(1)
        self._expected: bytes | None = None
        self._heard: asyncio.Future[None] | None = None

    def begin(self) -> bytes:
        """Expect a message, and return the envelope to publish."""
        self._heard = asyncio.get_running_loop().create_future()
        self._expected = wrap(KIND, self._node, next(self._numbers) & 0xFFFFFFFF, b"")
        return self._expected

    async def heard(self, seconds: float) -> None:
        """Wait until it has come back.

        Raises:
            TimeoutError: it has not within `seconds`.
        """
        assert self._heard is not None
        try:
            await answered(self._heard, seconds)
        finally:
            self._expected = self._heard = None

    def taken_out(self, batch: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        """The messages of `batch` without the one that is expected. Costs nothing while none is expected."""
        if self._expected is None:
            return batch
        others = [message for message in batch if message[1] != self._expected]
        if len(others) < len(batch) and self._heard is not None:
            with contextlib.suppress(asyncio.InvalidStateError):  # received already, through a pattern as well
                self._heard.set_result(None)
        return others
