import enum
from typing import final

from typing_extensions import Buffer

DEFAULT_MAX_FRAGMENTS: int
"""131,072 frames per message, empty ones included: twice what the Autobahn suite sends (9.3.1, 9.4.1)."""

class Verdict(enum.IntEnum):
    """What `Assembler` decided about a frame. From `UNEXPECTED_CONTINUATION` on it is a refusal."""

    MORE = 0
    """Stored; the message is not finished."""
    MESSAGE = 1
    """The message is finished: `take()` it."""
    UNEXPECTED_CONTINUATION = 2
    """A continuation frame with nothing to continue. Close with 1002."""
    EXPECTED_CONTINUATION = 3
    """A new message inside an unfinished one. Close with 1002."""
    BAD_UTF8 = 4
    """A text message that cannot be, or stopped being, UTF-8 (RFC 3629): no overlong forms, no surrogates, nothing
    above U+10FFFF, no character cut off by the end. The first impossible byte shows it. Close with 1007."""
    TOO_LARGE = 5
    """The message would pass `max_message_size`. Close with 1009."""
    TOO_MANY_FRAGMENTS = 6
    """The message would pass `max_fragments`. Close with 1008."""

@final
class Assembler:
    """Joins the data frames of one connection into messages (RFC 6455 §5.4): text is `str`, binary `bytes`.

    A refusal is final: it frees what was held and is repeated until `reset()`; `size`, `fragments` and `kind`
    keep what had been accepted, for the error message.

    Args:
        max_message_size: most payload bytes of a message, at least 1. No more memory than this is taken for
            payload before `take()`; decoding text then makes a `str`.
        max_fragments: most frames of a message, empty ones included, at least 1.

    Raises:
        ValueError: a limit is below 1.
    """

    def __init__(self, max_message_size: int, max_fragments: int = ...) -> None: ...
    @property
    def max_message_size(self) -> int: ...
    @property
    def max_fragments(self) -> int: ...
    @property
    def size(self) -> int:
        """Payload bytes accepted for the current message."""

    @property
    def fragments(self) -> int:
        """Frames accepted for the current message."""

    @property
    def kind(self) -> int:
        """Opcode of the current message: 1 text, 2 binary, 0 between messages."""

    @property
    def capacity(self) -> int:
        """Bytes of payload memory held now; at most `max_message_size`."""

    def push(self, opcode: int, fin: bool, data: Buffer) -> Verdict:
        """Take one data frame (unmasked, not compressed); its payload is copied.

        Raises:
            ValueError: the opcode is not 0, 1 or 2.
            RuntimeError: a finished message has not been taken.
            MemoryError: the unfinished message was dropped.
        """

    def take(self) -> str | bytes:
        """Hand over the finished message and start again.

        Raises:
            RuntimeError: no message is finished.
        """

    def active(self) -> bool:
        """Whether a message is begun and neither finished nor refused."""

    def reset(self) -> None:
        """Forget the message, or a refusal; free the buffer."""
