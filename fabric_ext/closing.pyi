from typing import Literal, final

@final
class CloseHandshake:
    """How the end of a session came about (RFC 6455 §7)."""

    @property
    def began_by(self) -> Literal["local", "remote"]: ...
    @property
    def sent_code(self) -> int:
        """Of the close frame we sent; 0: none."""

    @property
    def received_code(self) -> int:
        """Of the close frame received; 0: none, 1005: it had no body."""

    @property
    def reason(self) -> str:
        """What goes with the code that counts: the one received, unless we failed the connection."""

    @property
    def sent_reason(self) -> str:
        """Of the close frame we sent."""

    @property
    def received_reason(self) -> str:
        """Of the close frame received."""

    @property
    def fault(self) -> int:
        """The `fabric_ext.frames.Fault` for which we failed the connection; 0: we did not."""

    @property
    def cause(self) -> Exception | None:
        """The exception behind the fault."""

    @property
    def oversize(self) -> int:
        """Bytes that a message refused with 1009 has, or has at least."""
