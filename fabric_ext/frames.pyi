from enum import IntEnum
from typing import Self, TypeAlias, final

from typing_extensions import Buffer

class Fault(IntEnum):
    """Why a connection is failed (RFC 6455 §7.1.7), and the close code for it."""

    NO_FAULT = 0
    BAD_RSV = 1
    """A reserved bit that no extension has given a meaning (§5.2). 1002."""
    BAD_OPCODE = 2
    """1002."""
    NOT_MASKED = 3
    """A client's frame without a mask (§5.1). 1002."""
    MASKED = 4
    """A server's frame with one (§5.1). 1002."""
    LONG_LENGTH = 5
    """A length that is not in its shortest form, or of more than 63 bits (§5.2). 1002."""
    CONTROL_FRAGMENTED = 6
    """§5.5. 1002."""
    CONTROL_TOO_LONG = 7
    """A control frame of more than 125 bytes (§5.5). 1002."""
    UNEXPECTED_CONTINUATION = 8
    """Nothing to continue (§5.4). 1002."""
    EXPECTED_CONTINUATION = 9
    """A new message inside an unfinished one (§5.4). 1002."""
    BAD_UTF8 = 10
    """A text that is not UTF-8 (§8.1). 1007."""
    TOO_LARGE = 11
    """A message of more than `max_message_size` bytes. 1009."""
    TOO_MANY_FRAGMENTS = 12
    """A message in more than `max_fragments` frames. 1008."""
    BAD_COMPRESSION = 13
    """A message that does not inflate (RFC 7692). 1007."""
    BAD_CLOSE = 14
    """A close frame of one byte, or with a code that must not be sent (§5.5.1, §7.4). 1002."""
    BAD_CLOSE_TEXT = 15
    """A close reason that is not UTF-8 (§8.1). 1007."""
    RATE_EXCEEDED = 16
    """1008."""
    CALLBACK_FAILED = 17
    """The application's message callback raised. 1011."""
    READ_FAILED = 18
    """Something else raised while a read was being delivered. 1011."""

_Control: TypeAlias = tuple[int, bytes]
"""A whole control frame: opcode, payload."""

_Part: TypeAlias = tuple[int, bytes, bool, bool, bool, bool]
"""A data frame, or a part of one: opcode, payload, FIN, whether its message is compressed, whether this is the first
part of the frame, and whether it is the last."""

@final
class Decoder:
    """Reads frames (RFC 6455 §5): bytes in, unmasked payloads out as soon as they are there. Does no I/O.

    Modules written in C call `feed` and `next`, which copy nothing.

    Args:
        masked: the frames must be masked: this is a server.
        max_message_size: payload bytes of a message, 1 to 2**62. Checked when a header is read.
        max_fragments: frames of a message, empty ones included, at least 1.
        compressing: an extension gives RSV1 its meaning (RFC 7692). A message that has it set may announce
            `max_compressed` bytes.
        max_frame_size: payload bytes of a single data frame; 0 for as many as a message may have.

    Raises:
        ValueError: a limit is out of its range.
    """

    def __new__(
        cls,
        *,
        masked: bool,
        max_message_size: int,
        max_fragments: int,
        compressing: bool = False,
        max_frame_size: int = 0,
    ) -> Self: ...
    def read(self, data: Buffer) -> list[_Control | _Part | Fault]:
        """Read `data` next; return what it contains. A `Fault` is the last event, and the only one of later reads."""

    @property
    def masked(self) -> bool: ...
    @property
    def compressing(self) -> bool: ...
    @property
    def max_message_size(self) -> int: ...
    @property
    def max_frame_size(self) -> int: ...
    @property
    def max_compressed(self) -> int:
        """Payload bytes of a compressed message, before it inflates: what does not compress may grow a little."""

    @property
    def fault(self) -> int:
        """A `Fault`; it stays."""

    @property
    def oversize(self) -> int:
        """After `TOO_LARGE`: how many bytes the message has, as far as it was announced."""

    @property
    def in_message(self) -> bool:
        """Is a message begun and not at its end?"""

    @property
    def held_bytes(self) -> int:
        """Bytes kept of a header or a control frame that was cut off: 130 at most."""

    # The frame that was read last.

    @property
    def opcode(self) -> int: ...
    @property
    def fin(self) -> bool: ...
    @property
    def compressed(self) -> bool:
        """Its message has RSV1 set on the first frame."""

    @property
    def length(self) -> int:
        """Its payload bytes."""

    @property
    def begins(self) -> bool:
        """Was the latest part its first,"""

    @property
    def ends(self) -> bool:
        """or its last?"""
