"""A connection whose session is under test, on a transport that the test holds in its hand."""

from __future__ import annotations

import asyncio
import socket
import zlib
from typing import Any

from fabric_ext.connection import Connection
from fabric_ext.counters import Counters
from support.fake_transport import FakeTransport
from support.frames import (
    CLOSE,
    Wire,
    decode_all,
)

LIMIT = 1000
MAX_FRAGMENTS = 5
Data = str | bytes


class Peer(Connection):
    """A connection that notes what its session reports.

    Attributes:
        got: payloads, of a callback or of parts.
        counters: what its session counts in.
        failures: what `_on_failed` was told.
        pongs: payloads.
        session: the latest one.
    """

    def __init__(self, on_message: Any = "note", *, queue_limit: int = 1000, queue_byte_limit: int = 1 << 30) -> None:
        self.counters = Counters()
        self.got: list[Data] = []
        self.failures: list[tuple[BaseException, bool]] = []
        self.pongs: list[bytes] = []
        self.replaced = False
        super().__init__(
            asyncio.get_running_loop(),
            self.counters,
            queue_limit=queue_limit,
            queue_byte_limit=queue_byte_limit,
            on_message=Peer.note if on_message == "note" else on_message,
        )

    def note(self, message: Any) -> None:
        self.got.append(message.as_text() if message.is_text else message.as_bytes())

    def open(self, *, kernel: socket.socket | None = None, secure: bool = False, **options: Any) -> FakeTransport:
        options = {"max_message_size": LIMIT, "max_fragments": MAX_FRAGMENTS, "close_timeout": 5.0, **options}
        transport = FakeTransport(kernel, secure=secure).connect(self, **options)
        self.session: Any = self._session_now
        return transport

    def _on_pong(self, payload: bytes) -> None:
        self.pongs.append(payload)

    def _on_failed(self, error: BaseException, in_callback: bool) -> None:
        self.failures.append((error, in_callback))

    def _is_followed(self, session: Any) -> bool:
        return self.replaced


def answers(transport: FakeTransport) -> list[Wire]:
    """The frames written since."""
    frames = decode_all(transport.output)
    transport.written.clear()
    return frames


def closes_with(transport: FakeTransport) -> tuple[int | None, str]:
    """Code and reason of the only frame written since, a close frame."""
    (frame,) = answers(transport)
    assert frame.opcode == CLOSE
    return frame.close_code, frame.close_reason


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return (packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
