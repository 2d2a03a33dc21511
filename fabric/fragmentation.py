"""Messages into frames, and frames into messages (RFC 6455 §5.4).

Owns the unfinished messages of the connections it is fed from, and nothing else: no sockets, no masking keys,
no compression, no clock. Connections do not use this module: they do the same in compiled code, by the same
rules. It is for proxies, tests and tools that handle frames themselves. One object belongs to one thread.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterable, AsyncIterator, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from fabric.error import ConnectionLimitExceeded, Error, InvalidFrame, MessageTooLarge, Utf8Error
from fabric.message import Frame, Message, MessageType
from fabric_ext.assembler import DEFAULT_MAX_FRAGMENTS, Assembler, Verdict

if TYPE_CHECKING:
    from typing_extensions import Buffer

    Data: TypeAlias = str | Buffer | Message

__all__ = ["ConnectionId", "Fragmenter", "Reassembler"]

_CONTINUATION = 0

# As many as a server accepts connections by default: each may have one message under way.
_DEFAULT_MAX_CONNECTIONS = 10_000


class Fragmenter:
    """Splits messages into frames of limited size.

    The frames are neither masked nor compressed. Text is cut at any byte, also inside a character
    (RFC 6455 §5.6).

    Args:
        max_fragment_size: most payload bytes of a frame, at least 1.

    Raises:
        ValueError: `max_fragment_size` is below 1.
        TypeError: it is not an int.
    """

    __slots__ = ("_max_fragment_size",)

    def __init__(self, max_fragment_size: int) -> None:
        self._max_fragment_size = _at_least_one("max_fragment_size", max_fragment_size)

    @property
    def max_fragment_size(self) -> int:
        """Most payload bytes of a frame."""
        return self._max_fragment_size

    def fragment(self, message: Data | Iterable[Data]) -> Iterator[Frame]:
        """Yield the frames of one message.

        A str, bytes-like object or `Message` goes out in as few frames as fit it; an empty one is one empty
        frame. A control message is one frame, whatever its size.

        An iterable becomes one message: at least one frame per item, each yielded before the next item is
        asked for, then an empty last frame. No items, no frames. If it raises, the message stays unfinished,
        and a connection that has sent a part of it must be closed.

        Raises:
            TypeError: not a message, or an iterable that mixes text and binary, or a mapping.
            Utf8Error: text with lone surrogates.
        """
        whole = _as_message(message)
        if whole is not None:
            return self._split(int(whole.msg_type), whole.payload, fin=True)
        if isinstance(message, Mapping) or not isinstance(message, Iterable):
            raise TypeError(f"a message is str, bytes-like, Message or iterable, not {message!r:.80}")
        return self._stream(message)

    async def fragment_async(self, items: AsyncIterable[Data]) -> AsyncIterator[Frame]:
        """As `fragment`, of an asynchronous iterable."""
        kind: MessageType | None = None
        async for item in items:
            part = _part(item, kind)
            for frame in self._split(_CONTINUATION if kind else int(part.msg_type), part.payload, fin=False):
                yield frame
            kind = part.msg_type
        if kind:
            yield Frame(_CONTINUATION, fin=True)

    def _stream(self, items: Iterable[Data]) -> Iterator[Frame]:
        kind: MessageType | None = None
        for item in items:
            part = _part(item, kind)
            yield from self._split(_CONTINUATION if kind else int(part.msg_type), part.payload, fin=False)
            kind = part.msg_type
        if kind:
            yield Frame(_CONTINUATION, fin=True)

    def _split(self, opcode: int, payload: bytes, *, fin: bool) -> Iterator[Frame]:
        size = len(payload)
        step = self._max_fragment_size
        # RFC 6455 §5.5: control frames must not be fragmented.
        if size <= step or opcode >= MessageType.CLOSE:
            yield Frame(opcode, payload, fin=fin)
            return
        view = memoryview(payload)
        for start in range(0, size, step):
            end = start + step
            yield Frame(opcode if start == 0 else _CONTINUATION, view[start:end], fin=fin and end >= size)


@dataclass(frozen=True, slots=True)
class ConnectionId:
    """An opaque name for one connection, unique within the process: `ConnectionId.new()`."""

    _number: int = field(default_factory=itertools.count(1).__next__)

    @classmethod
    def new(cls) -> ConnectionId:
        """An id that no other message has."""
        return cls()

    def __repr__(self) -> str:
        return f"<ConnectionId {self._number}>"


class Reassembler:
    """Joins the frames of any number of connections into messages.

    Payload memory is at most `max_message_size` for each connection with an unfinished message; there are at
    most `max_connections` of those, and a fragment costs nothing beyond its bytes.

    Args:
        max_message_size: most payload bytes of a message, at least 1.
        max_fragments: most frames of a message, empty ones included, at least 1.
        max_connections: most connections with an unfinished message at a time, at least 1.

    Raises:
        ValueError: a limit is below 1.
        TypeError: a limit is not an int.
    """

    __slots__ = ("_max_connections", "_max_fragments", "_max_message_size", "_spare", "_unfinished")

    def __init__(
        self,
        max_message_size: int,
        max_fragments: int = DEFAULT_MAX_FRAGMENTS,
        *,
        max_connections: int = _DEFAULT_MAX_CONNECTIONS,
    ) -> None:
        self._max_message_size = _at_least_one("max_message_size", max_message_size)
        self._max_fragments = _at_least_one("max_fragments", max_fragments)
        self._max_connections = _at_least_one("max_connections", max_connections)
        self._unfinished: dict[Hashable, Assembler] = {}
        # Takes the first frame of any connection, and is empty again if that was the whole message.
        self._spare = self._new_assembler()

    def feed(self, connection_id: Hashable, frame: Frame) -> Message | None:
        """Take the next frame of a connection; return the message it finishes, or None.

        A control frame is a message of its own, also between the fragments of another. After an error the
        connection is to be closed (RFC 6455 §7.1.7); what it had unfinished is forgotten.

        Args:
            connection_id: a `ConnectionId`, or anything hashable that names the connection.
            frame: already decompressed, if an extension was negotiated.

        Raises:
            InvalidFrame: a continuation of nothing, a message inside an unfinished one, a reserved bit, a
                malformed close (code 1002); more than `max_fragments` (code 1008).
            Utf8Error: text, or the reason of a close, that is not UTF-8; at the first bad byte.
            MessageTooLarge: more than `max_message_size`.
            ConnectionLimitExceeded: `max_connections` others have unfinished messages.
        """
        try:
            # RFC 6455 §5.2: without an extension that gives them a meaning, these bits are 0.
            if frame.rsv1 or frame.rsv2 or frame.rsv3:
                raise InvalidFrame("reserved bit set, and no extension gives it a meaning")
            if frame.opcode >= MessageType.CLOSE:
                return _control_message(frame)
            return self._take_data(connection_id, frame)
        except Error:
            self.discard(connection_id)
            raise

    def discard(self, connection_id: Hashable) -> None:
        """Forget the unfinished message of a connection, if there is one. Call it when a connection ends."""
        self._unfinished.pop(connection_id, None)

    def __len__(self) -> int:
        """How many connections have an unfinished message."""
        return len(self._unfinished)

    def __bool__(self) -> bool:
        return True

    @property
    def held_bytes(self) -> int:
        """Payload memory of all unfinished messages, in bytes."""
        return sum(assembler.capacity for assembler in self._unfinished.values())

    def _take_data(self, connection_id: Hashable, frame: Frame) -> Message | None:
        assembler = self._unfinished.get(connection_id, self._spare)
        verdict = assembler.push(frame.opcode, frame.fin, frame.payload)
        if verdict is Verdict.MESSAGE:
            self._unfinished.pop(connection_id, None)
            return Message(assembler.take())
        if verdict is Verdict.MORE:
            if assembler is self._spare:
                self._keep_spare_for(connection_id)
            return None
        error = self._refusal(verdict, assembler, len(frame.payload))
        assembler.reset()
        raise error

    def _keep_spare_for(self, connection_id: Hashable) -> None:
        if len(self._unfinished) >= self._max_connections:
            self._spare.reset()
            raise ConnectionLimitExceeded(self._max_connections, "connections with unfinished messages")
        self._unfinished[connection_id] = self._spare
        self._spare = self._new_assembler()

    def _new_assembler(self) -> Assembler:
        return Assembler(self._max_message_size, self._max_fragments)

    def _refusal(self, verdict: Verdict, assembler: Assembler, size: int) -> Error:
        match verdict:
            case Verdict.UNEXPECTED_CONTINUATION:
                return InvalidFrame("continuation frame, but no message to continue")
            case Verdict.EXPECTED_CONTINUATION:
                return InvalidFrame("new message before the last one was finished")
            case Verdict.BAD_UTF8:
                return Utf8Error(f"text message is not UTF-8 (after byte {assembler.size}, in {size} bytes)")
            case Verdict.TOO_LARGE:
                return MessageTooLarge(assembler.size + size, self._max_message_size)
            case _:
                return InvalidFrame(f"message has more than {self._max_fragments} fragments", code=1008)


def _at_least_one(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def _as_message(value: Any) -> Message | None:
    """`value` as one whole message, or None if it is something else, perhaps an iterable of parts."""
    if isinstance(value, Message):
        return value
    try:
        return Message(value)
    except TypeError:
        return None


def _part(item: object, kind: MessageType | None) -> Message:
    """One item of an iterable, which must be of the same type as those before it."""
    part = _as_message(item)
    if part is None or part.msg_type >= MessageType.CLOSE:
        raise TypeError(f"a part of a message is str or bytes-like, not {item!r:.80}")
    if kind is not None and part.msg_type is not kind:
        raise TypeError(f"a {kind.name} message cannot have a {part.msg_type.name} part")
    return part


def _control_message(frame: Frame) -> Message:
    if frame.opcode == MessageType.PING:
        return Message.ping(frame.payload)
    if frame.opcode == MessageType.PONG:
        return Message.pong(frame.payload)
    # RFC 6455 §5.5.1: no body, or two bytes of code and a reason in UTF-8.
    body = frame.payload
    if not body:
        return Message.close(None)
    if len(body) == 1:
        raise InvalidFrame("close frame with a body of 1 byte")
    try:
        reason = body[2:].decode()
    except UnicodeDecodeError as error:
        raise Utf8Error(f"close reason is not UTF-8: {error}") from None
    try:
        return Message.close(int.from_bytes(body[:2]), reason)
    except ValueError as error:  # a code that must not be on the wire (RFC 6455 §7.4)
        raise InvalidFrame(str(error)) from None
