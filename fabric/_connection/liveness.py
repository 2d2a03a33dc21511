"""What the heartbeat sees of a connection, and what it may do to it (`fabric.heartbeat.HeartbeatTarget`).

Owns the look into the kernel that tells a peer that is busy from one that is gone. Decides nothing.
"""

from __future__ import annotations

import fcntl
import logging
import socket
import struct
import sys
import termios
from typing import TYPE_CHECKING, Any

from fabric._connection.events import log_event
from fabric.error import Timeout

if TYPE_CHECKING:
    from fabric.heartbeat import HeartbeatManager

__all__ = ["LivenessProbe"]

# Of struct tcp_info in linux/tcp.h: how often a full receiver was probed since anything was acknowledged; bytes of the
# largest segment to be sent; segments on their way, not acknowledged; milliseconds since an acknowledgement came.
_TCP_INFO = struct.Struct("=3xB12xI4xI28xI")
_HAS_TCP_INFO = sys.platform == "linux"


class LivenessProbe:
    """One connection, watched by `manager` until `stop`."""

    __slots__ = ("_connection", "_exchanged", "_manager")

    def __init__(self, connection: Any, manager: HeartbeatManager) -> None:
        self._connection = connection  # a fabric._connection.base.BaseConnection, which makes its own probe
        self._manager = manager
        self._exchanged = -1  # messages, when the latest ping was sent
        manager.add(self)

    def stop(self) -> None:
        """Watch it no longer."""
        self._manager.remove(self)

    def pong(self, payload: bytes) -> float | None:
        """The round trip, in seconds, if `payload` answers the heartbeat's ping."""
        return self._manager.pong(self, payload)

    # -- for the manager

    @property
    def inbound_seen(self) -> bool:
        session = self._connection._session_now
        return bool(session is not None and session.inbound_seen)

    @inbound_seen.setter
    def inbound_seen(self, seen: bool) -> None:
        session = self._connection._session_now
        if session is not None:
            session.inbound_seen = seen

    @property
    def is_reading_paused(self) -> bool:
        return bool(self._connection.is_reading_paused)

    @property
    def ping_is_queued(self) -> bool:
        """In the transport's buffer, or in the kernel's, sent but not acknowledged included."""
        if self._connection._is_blocked:
            return True
        sock = self._socket()
        if sock is None or _silence_of(sock) is None:
            return False
        queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(queued, sys.byteorder) > 0

    def kernel_alive(self, within: float) -> bool | None:
        """Did the peer's kernel acknowledge anything in the last `within` seconds? None = unknown."""
        sock = self._socket()
        silence = None if sock is None else _silence_of(sock)
        return None if silence is None else silence <= within

    def _socket(self) -> Any:
        transport = self._connection._transport
        return None if transport is None else transport.get_extra_info("socket")

    def send_ping(self, payload: bytes) -> None:
        connection = self._connection
        session = connection._session_now
        if session is None or not connection.is_connected:
            return
        exchanged = connection.messages_sent + connection.messages_received
        if exchanged == self._exchanged:
            session.release_codec()  # nothing was exchanged for a whole interval
        self._exchanged = exchanged
        session.write_ping(payload)

    def fail(self, reason: str) -> None:
        log_event(self._connection._logger, logging.INFO, "connection %s: %s", self._connection.id, reason)
        session = self._connection._session_now
        if session is not None:
            session.abort(Timeout("heartbeat", self._manager.config.ping_timeout))


def _silence_of(sock: Any) -> float | None:
    """Seconds for which the peer's kernel has owed us an acknowledgement; None where the system does not tell.

    The kernel of a peer that does not read owes none between two probes of its window, which come ever further apart,
    up to two minutes: in between nothing tells a peer that is gone from one that reads nothing.
    """
    if not _HAS_TCP_INFO or sock.family == socket.AF_UNIX:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        probes, largest, flying, acknowledged = _TCP_INFO.unpack(info)
    except (OSError, struct.error):
        return None
    if not largest:
        return None  # some that are not Linux have zeros for what they do not know (gVisor)
    # One probe may be on its way.
    return acknowledged / 1000 if flying or probes > 1 else 0.0
