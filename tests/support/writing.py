"""A connection that sends to a kernel of the test's own, and what decides when its bytes leave."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fabric_ext.connection import Connection
from fabric_ext.counters import Counters
from fabric_ext.writer import hold_back
from support.fake_transport import FakeTransport
from support.frames import decode_all
from support.kernel import Kernel

if TYPE_CHECKING:
    pass

LONG = 10_000_000_000  # ns, more than a test takes
PATIENCE = 50_000  # ns: the contract of `send`
LARGE = 8192  # from here on a payload is not copied
BLOCK = 65536  # bytes that are gathered at most
SIZES = [0, 1, 125, 126, 127, 1000, LARGE - 1, LARGE, 65521, 65522, 65535, 65536, 70_000]


class Echo(Connection):
    """A connection that sends back what it gets, where it gets it."""

    def __init__(self, on_message: Any = Connection.send_nowait) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            Counters(),
            queue_limit=1000,
            queue_byte_limit=1 << 30,
            on_message=on_message,
        )

    def taken_back(self) -> list[tuple[Any, bool | None]]:
        """Payload and `compress` of what waits in the outbox."""
        kept = [self._outbox_pop() for _ in range(self._outbox_size)]
        return [(message.as_text() if message.is_text else message.as_bytes(), compress) for message, compress in kept]


def open_on(
    kernel: Kernel | None, connection: Connection, *, patience: int | None = LONG, **options: Any
) -> FakeTransport:
    """`connection`, open; whatever follows closely is gathered for `patience` ns from now on (None: as promised)."""
    transport = FakeTransport(kernel and kernel.near).connect(connection, **options)
    if patience is not None:
        hold_back(asyncio.get_running_loop(), patience)
    return transport


def cork(connection: Connection, change: int) -> None:
    """One more, or one less, asks that what is sent on `connection` is gathered."""
    session = connection._session_now
    if session is not None:
        session.cork(change)


def grow_old() -> None:
    """As if 50 µs had passed since anything was sent or gathered."""
    hold_back(asyncio.get_running_loop(), 0)


def payloads(data: bytes | list[bytes]) -> list[bytes]:
    return [frame.payload for frame in decode_all(data if isinstance(data, bytes) else b"".join(data))]


def numbers(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


async def end_of_turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
