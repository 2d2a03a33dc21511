import enum
from typing import Any, Final, Literal, Protocol, TypeVar, final, overload, type_check_only

from typing_extensions import Buffer, TypeForm

_T = TypeVar("_T")

class MessageType(enum.IntEnum):
    """What a message is; the values are the opcodes of RFC 6455 §5.2."""

    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10

@type_check_only
class _MakeText(Protocol):
    def __call__(self, value: str, /) -> Message: ...

@type_check_only
class _MakeJson(Protocol):
    def __call__(self, value: Any, /) -> Message: ...

@type_check_only
class _ParseJson(Protocol):
    @overload
    def __call__(self) -> Any: ...
    @overload
    def __call__(self, type: type[_T]) -> _T: ...
    @overload
    def __call__(self, type: TypeForm[_T]) -> _T: ...
    @overload
    def __call__(self, type: Any) -> Any: ...

@final
class _TextAttribute:
    """`Message.text(value)` makes a message, `message.text` is the text of one."""

    @overload
    def __get__(self, instance: None, owner: type[Message] | None = None, /) -> _MakeText: ...
    @overload
    def __get__(self, instance: Message, owner: type[Message] | None = None, /) -> str: ...

@final
class _JsonAttribute:
    """`Message.json(value)` makes a message, `message.json(type)` parses one."""

    @overload
    def __get__(self, instance: None, owner: type[Message] | None = None, /) -> _MakeJson: ...
    @overload
    def __get__(self, instance: Message, owner: type[Message] | None = None, /) -> _ParseJson: ...

@final
class Message:
    """One whole message, immutable: `Message("text")`, `Message(b"binary")`, or by a named constructor.

    A str becomes TEXT; bytes, bytearray, memoryview and other buffers become BINARY, copied unless they are
    bytes. A message is always true, even an empty one: `while message := await client.recv()` ends at None.

    Raises:
        TypeError: the value is none of these.
        Utf8Error: a str with lone surrogates.

    A TEXT equals a str of the same characters, a BINARY bytes of the same content, and hashes alike.
    """

    text: Final[_TextAttribute]
    """`Message.text(value)` is a TEXT message. Raises TypeError unless given a str, Utf8Error for lone surrogates.

    `message.text` is the text of a message, as `as_text()`.
    """

    json: Final[_JsonAttribute]
    """`Message.json(value)` is a TEXT message with `value` as JSON: anything msgspec encodes. NaN and infinities
    become null. Raises TypeError for an object that JSON cannot express, Utf8Error for lone surrogates.

    `message.json(type)` is the payload of a message decoded, as `parse_json(type)`.
    """

    def __init__(self, value: str | Buffer | Message, /) -> None: ...
    @staticmethod
    def binary(value: Buffer, /) -> Message:
        """A BINARY message of a bytes-like object, copied unless it is bytes. Raises TypeError for others."""

    @staticmethod
    def ping(payload: str | Buffer = b"", /) -> Message:
        """A PING of at most 125 bytes (str is encoded); ValueError above that. RFC 6455 §5.5.2."""

    @staticmethod
    def pong(payload: str | Buffer = b"", /) -> Message:
        """A PONG of at most 125 bytes (str is encoded); ValueError above that. RFC 6455 §5.5.3."""

    @staticmethod
    def close(code: int | None = 1000, reason: str = "") -> Message:
        """A CLOSE; `code=None` means an empty body. RFC 6455 §5.5.1, §7.4.

        Raises ValueError for a code that must not be sent or a reason above 123 bytes of UTF-8.
        """

    @overload
    def parse_json(self) -> Any: ...
    @overload
    def parse_json(self, type: type[_T]) -> _T: ...
    @overload
    def parse_json(self, type: TypeForm[_T]) -> _T: ...
    @overload
    def parse_json(self, type: Any) -> Any:
        """The payload as JSON, decoded into `type`: a dataclass, msgspec.Struct, TypedDict, list[int] …

        Decoders are kept for the types used last.

        Raises:
            JsonError: not JSON, or not of this type; `path` tells where in the document a value does not fit,
                "" if the document itself is malformed.
            TypeError: a type that msgspec does not support.
        """

    def as_text(self) -> str:
        """The payload as str. Raises Utf8Error if it is not UTF-8, which a text message always is."""

    def as_bytes(self) -> bytes:
        """The payload as it is sent: UTF-8 for a text, code and reason for a close."""

    @property
    def data(self) -> str | bytes:
        """The payload in its own type: str for a TEXT, bytes for all others."""

    @property
    def payload(self) -> bytes:
        """The same as `as_bytes()`."""

    @property
    def received_ns(self) -> int:
        """`time.monotonic_ns()` when the read returned that completed this message; 0 if it was not received.

        The difference to now is how long it has waited in this process.
        """

    @property
    def msg_type(self) -> MessageType:
        """Which MessageType this is."""

    @property
    def is_text(self) -> bool:
        """Is this a TEXT message?"""

    @property
    def is_binary(self) -> bool:
        """Is this a BINARY message?"""

    @property
    def is_ping(self) -> bool:
        """Is this a PING?"""

    @property
    def is_pong(self) -> bool:
        """Is this a PONG?"""

    @property
    def is_close(self) -> bool:
        """Is this a CLOSE?"""

    @property
    def is_empty(self) -> bool:
        """Is the payload empty?"""

    @property
    def close_code(self) -> int | None:
        """The code of a CLOSE, 1005 if it carries none (RFC 6455 §7.1.5); None for other messages."""

    @property
    def close_reason(self) -> str | None:
        """The reason of a CLOSE, "" if it has none; None for others. Raises Utf8Error if malformed."""

    def __len__(self) -> int:
        """Bytes of payload; for a text, of its UTF-8 form."""

    def __bool__(self) -> Literal[True]: ...
    def __bytes__(self) -> bytes: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Frame:
    """One raw frame (RFC 6455 §5.2), immutable; `payload` is never masked, `masked` tells how it travels.

    `opcode` is 0 (continuation), 1, 2, 8, 9 or 10. RSV bits are free: what they mean is up to the extension.

    Raises:
        InvalidFrame: a reserved opcode, or a control frame that is fragmented or longer than 125 bytes.
        ValueError: an opcode that does not fit four bits.
        TypeError: the payload is not bytes-like.
    """

    def __init__(
        self,
        opcode: int,
        payload: Buffer = b"",
        *,
        fin: bool = True,
        rsv1: bool = False,
        rsv2: bool = False,
        rsv3: bool = False,
        masked: bool = False,
    ) -> None: ...
    @property
    def fin(self) -> bool:
        """Is this the last frame of its message?"""

    @property
    def rsv1(self) -> bool:
        """First reserved bit; permessage-deflate marks compressed messages with it (RFC 7692 §6)."""

    @property
    def rsv2(self) -> bool:
        """Second reserved bit."""

    @property
    def rsv3(self) -> bool:
        """Third reserved bit."""

    @property
    def opcode(self) -> int:
        """0 for a continuation, else a MessageType's value."""

    @property
    def masked(self) -> bool:
        """Does the payload travel masked, as a client's must (RFC 6455 §5.3)?"""

    @property
    def payload(self) -> bytes:
        """The payload, unmasked."""

    def encode(self, mask: Buffer | None = None) -> bytes:
        """The frame as it goes on the wire, masked with the 4 bytes of `mask`.

        Without `mask` a frame that says `masked` takes a fresh random key and others go out plain. Raises
        ValueError if `mask` is not 4 bytes.
        """

    @staticmethod
    def parse(buffer: Buffer, *, max_size: int | None = None) -> tuple[Frame, int] | None:
        """Take the first frame of `buffer`: `(Frame, bytes consumed)`, or None if it is not all there yet.

        Faults are raised as soon as the bytes that show them are there, before any payload is copied.

        Raises:
            InvalidFrame: see the class; also a length not in its shortest form or above 2**63 - 1.
            MessageTooLarge: the header announces more than `max_size` bytes of payload.
        """

    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

def bind_errors(
    *,
    json_error: type[Exception],
    utf8_error: type[Exception],
    invalid_frame: type[Exception],
    message_too_large: type[Exception],
) -> None:
    """Set the exception classes this module raises; called once, by `fabric.message`."""
