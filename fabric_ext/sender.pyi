from typing_extensions import disjoint_base

from fabric_ext.writer import Writer

@disjoint_base
class Sender(Writer):
    """The sending half of a session."""

    @property
    def is_sending_parts(self) -> bool:
        """Has a message that is sent in parts begun, and not ended?"""

    def write_ping(self, payload: bytes) -> None:
        """Send a ping of at most 125 bytes, before whatever waits in the outbox."""

    def write_pong(self, payload: bytes) -> None:
        """Send a pong that nobody asked for (RFC 6455 §5.5.3)."""

    def write_part(self, opcode: int, payload: bytes, fin: bool, compress: bool | None) -> bool:
        """Send one part of a message sent in parts; `opcode` 0 continues it.

        Its first part decides whether it is compressed: the size of the whole is not known.
        """

    def stop_parts(self) -> None:
        """The message that was being sent in parts is at its end, or abandoned."""

    def release_codec(self) -> None:
        """Give back the memory of compression that an idle connection need not keep."""
