from typing import final

from typing_extensions import disjoint_base

from fabric_ext.receive_queue import ReceiveQueue
from fabric_ext.session import Session

@final
class Part:
    """One part of a message that is received as a stream."""

    @property
    def data(self) -> str | bytes: ...
    @property
    def final(self) -> bool:
        """Is it the last one?"""

    @property
    def is_cut_off(self) -> bool:
        """No part, but the end of the connection inside the message."""

@disjoint_base
class SessionUser(ReceiveQueue):
    """What a session reports to; the base of a connection."""

    @property
    def messages_received(self) -> int:
        """Over all sessions; so are the following. Bytes are payloads, before compression and after decompression."""

    @property
    def bytes_received(self) -> int: ...
    @property
    def messages_sent(self) -> int: ...
    @property
    def bytes_sent(self) -> int: ...
    def _is_followed(self, session: Session) -> bool:
        """Does another session follow this one, which the peer has closed? Then nothing is worth waiting for."""

    def _on_pong(self, payload: bytes) -> None:
        """A pong arrived."""

    def _explain(
        self, fault: int, length: int, before: int, cause: BaseException | None
    ) -> tuple[int, str, BaseException | None] | None:
        """What to say of a fault of the peer: code, reason, cause; None to say what `fabric_ext.protocol` does.

        `length` is what the frame announces, `before` what its message had before it, in bytes.
        """

    def _on_failed(self, error: BaseException, in_callback: bool) -> None:
        """The application's callback raised, or reading did; the connection is being failed with 1011."""
