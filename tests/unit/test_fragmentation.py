"""fabric.fragmentation: what Fragmenter cuts, Reassembler joins, and nothing else gets through."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.error import ConnectionLimitExceeded, InvalidFrame, MessageTooLarge, Utf8Error
from fabric.fragmentation import ConnectionId, Fragmenter, Reassembler
from fabric.message import Frame, Message

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Iterator

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
LIMIT = 1000

messages = st.one_of(st.text(max_size=60), st.binary(max_size=60)).map(Message)


def shape(frames: list[Frame]) -> list[tuple[int, bytes, bool]]:
    return [(frame.opcode, frame.payload, frame.fin) for frame in frames]


# --- Fragmenter ---------------------------------------------------------------------------------------------


@given(messages, st.integers(1, 70))
def test_frames_of_a_message(message: Message, size: int) -> None:
    frames = list(Fragmenter(size).fragment(message))
    assert b"".join(frame.payload for frame in frames) == message.payload
    assert len(frames) == max(1, -(-len(message) // size))
    assert frames[0].opcode == message.msg_type
    assert all(frame.opcode == CONTINUATION for frame in frames[1:])
    assert [frame.fin for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert all(len(frame.payload) == size for frame in frames[:-1])
    assert not any(frame.masked or frame.rsv1 or frame.rsv2 or frame.rsv3 for frame in frames)


@pytest.mark.parametrize(
    ("value", "opcode"),
    [
        ("abcde", TEXT),
        (b"abcde", BINARY),
        (bytearray(b"abcde"), BINARY),
        (memoryview(b"abcde"), BINARY),
        (Message.text("abcde"), TEXT),
        (Message.binary(b"abcde"), BINARY),
    ],
)
def test_kinds_of_messages(value: object, opcode: int) -> None:
    expected = [(opcode, b"ab", False), (CONTINUATION, b"cd", False), (CONTINUATION, b"e", True)]
    assert shape(list(Fragmenter(2).fragment(value))) == expected


def test_text_is_cut_inside_characters() -> None:
    assert shape(list(Fragmenter(1).fragment("é"))) == [(TEXT, b"\xc3", False), (CONTINUATION, b"\xa9", True)]


def test_message_that_fits_is_not_copied() -> None:
    payload = bytes(1000)
    (frame,) = Fragmenter(1000).fragment(payload)
    assert frame.payload is payload


@pytest.mark.parametrize("message", [Message.ping(b"abc"), Message.pong(b"abc"), Message.close(1000, "abc")])
def test_control_messages_are_never_cut(message: Message) -> None:
    assert shape(list(Fragmenter(1).fragment(message))) == [(message.msg_type, message.payload, True)]


def test_iterable_is_one_message() -> None:
    frames = shape(list(Fragmenter(2).fragment(["abc", "", "d"])))
    assert frames == [
        (TEXT, b"ab", False),
        (CONTINUATION, b"c", False),
        (CONTINUATION, b"", False),
        (CONTINUATION, b"d", False),
        (CONTINUATION, b"", True),
    ]
    assert list(Fragmenter(2).fragment([])) == []


def test_items_are_sent_before_the_next_is_asked_for() -> None:
    asked = []

    def items() -> Iterator[bytes]:
        for i in range(3):
            asked.append(i)
            yield bytes([i])

    frames = Fragmenter(10).fragment(items())
    assert asked == []
    for i in range(3):
        assert next(frames).payload == bytes([i])
        assert asked == list(range(i + 1))
    assert [frame.fin for frame in frames] == [True]


@given(st.lists(st.binary(max_size=9), max_size=6), st.integers(1, 4))
@settings(max_examples=50)
def test_asynchronous_iterables_do_as_iterables(parts: list[bytes], size: int) -> None:
    async def items() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async def collect() -> list[Frame]:
        return [frame async for frame in Fragmenter(size).fragment_async(items())]

    coroutine = collect()
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)  # nothing in it waits, so no loop is needed
    assert done.value.value == list(Fragmenter(size).fragment(parts))


def test_asynchronous_iterable_of_mixed_types() -> None:
    async def items() -> AsyncIterator[object]:
        yield "text"
        yield b"binary"

    async def collect() -> None:
        async for _ in Fragmenter(10).fragment_async(items()):
            pass

    with pytest.raises(TypeError, match="BINARY part"):
        collect().send(None)


@pytest.mark.parametrize("value", [1, None, 1.5, {"a": "b"}, object()])
def test_what_is_not_a_message_is_refused_before_the_first_frame(value: object) -> None:
    with pytest.raises(TypeError, match="a message is"):
        Fragmenter(10).fragment(value)


@pytest.mark.parametrize("items", [["a", b"b"], [b"a", "b"], [Message.ping()], ["a", Message.close()], [1], [["a"]]])
def test_parts_of_the_wrong_type(items: list[object]) -> None:
    with pytest.raises(TypeError, match="part"):
        list(Fragmenter(10).fragment(items))


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(Utf8Error):
        list(Fragmenter(10).fragment("\ud800"))


# --- ConnectionId -------------------------------------------------------------------------------------------


def test_connection_ids_are_distinct_hashable_and_copyable() -> None:
    ids = [ConnectionId.new() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert copy.copy(ids[0]) == ids[0] == pickle.loads(pickle.dumps(ids[0]))
    assert ids[0] != ids[1]
    assert repr(ids[0]).startswith("<ConnectionId ")
    with pytest.raises(AttributeError):
        ids[0]._number = 1


# --- Reassembler: what goes in comes out --------------------------------------------------------------------


def feed_all(reassembler: Reassembler, connection_id: ConnectionId, frames: list[Frame]) -> list[Message]:
    return [message for frame in frames if (message := reassembler.feed(connection_id, frame)) is not None]


@given(messages, st.integers(1, 70))
def test_round_trip(message: Message, size: int) -> None:
    size_limit = max(1, len(message))
    reassembler = Reassembler(size_limit, size_limit)
    frames = list(Fragmenter(size).fragment(message))
    # Over the wire, too.
    frames = [Frame.parse(frame.encode(b"\x01\x02\x03\x04"))[0] for frame in frames]
    assert feed_all(reassembler, ConnectionId.new(), frames) == [message]
    assert len(reassembler) == 0
    assert reassembler.held_bytes == 0


def test_connections_are_kept_apart(rng: random.Random) -> None:
    reassembler = Reassembler(LIMIT)
    sent: dict[ConnectionId, list[Message]] = {}
    queues: dict[ConnectionId, list[Frame]] = {}
    received: dict[ConnectionId, list[Message]] = {}
    for number in range(50):
        connection = ConnectionId.new()
        sent[connection] = [Message(f"é{number}" * rng.randrange(20)) for _ in range(5)]
        cut = Fragmenter(rng.randrange(1, 9)).fragment
        queues[connection] = [frame for message in sent[connection] for frame in cut(message)]
        received[connection] = []
    while queues:
        connection = rng.choice(list(queues))
        message = reassembler.feed(connection, queues[connection].pop(0))
        if message is not None:
            received[connection].append(message)
        if not queues[connection]:
            del queues[connection]
    assert received == sent
    assert len(reassembler) == 0


def test_control_frames_between_fragments() -> None:
    reassembler = Reassembler(LIMIT, 3)
    connection = ConnectionId.new()
    assert reassembler.feed(connection, Frame(PING, b"first")) == Message.ping(b"first")
    assert reassembler.feed(connection, Frame(TEXT, b"\xe2", fin=False)) is None
    for _ in range(10):
        assert reassembler.feed(connection, Frame(PING, b"1")) == Message.ping(b"1")
        assert reassembler.feed(connection, Frame(PONG, b"2")) == Message.pong(b"2")
        assert reassembler.feed(connection, Frame(CLOSE, b"\x03\xe8bye")) == Message.close(1000, "bye")
        assert reassembler.feed(connection, Frame(CLOSE)) == Message.close(None)
    assert reassembler.feed(connection, Frame(CONTINUATION, b"\x82", fin=False)) is None
    assert reassembler.feed(connection, Frame(CONTINUATION, b"\xac")) == Message("€")


def test_any_hashable_names_a_connection() -> None:
    reassembler = Reassembler(LIMIT)
    assert reassembler.feed("a", Frame(TEXT, b"1", fin=False)) is None
    assert reassembler.feed(("b", 2), Frame(TEXT, b"2", fin=False)) is None
    assert reassembler.feed("a", Frame(CONTINUATION)) == Message("1")
    assert reassembler.feed(("b", 2), Frame(CONTINUATION)) == Message("2")


# --- Reassembler: what it refuses ---------------------------------------------------------------------------

part = Frame(TEXT, b"held", fin=False)


@pytest.mark.parametrize(
    ("frames", "error", "text"),
    [
        ([Frame(CONTINUATION)], InvalidFrame, "no message to continue"),
        ([Frame(TEXT, b"whole"), Frame(CONTINUATION)], InvalidFrame, "no message to continue"),
        ([part, Frame(TEXT, b"")], InvalidFrame, "before the last one was finished"),
        ([part, Frame(BINARY, b"", fin=False)], InvalidFrame, "before the last one was finished"),
        ([part, Frame(CONTINUATION, b"", rsv1=True)], InvalidFrame, "reserved bit"),
        ([part, Frame(PING, b"", rsv2=True)], InvalidFrame, "reserved bit"),
        ([Frame(BINARY, b"", rsv3=True)], InvalidFrame, "reserved bit"),
        ([part, Frame(CLOSE, b"\x03")], InvalidFrame, "1 byte"),
        ([part, Frame(CLOSE, b"\x03\xed")], InvalidFrame, "1005"),
        ([Frame(CLOSE, b"\x00\x00")], InvalidFrame, "close code"),
        ([Frame(CLOSE, b"\xff\xff")], InvalidFrame, "65535"),
        ([part, Frame(CLOSE, b"\x03\xe8\xff")], Utf8Error, "close reason"),
        ([part, Frame(CONTINUATION, b"ab\xff", fin=False)], Utf8Error, "after byte 4, in 3 bytes"),
        ([Frame(TEXT, b"\xed\xa0\x80")], Utf8Error, "not UTF-8"),
        ([part, Frame(CONTINUATION, b"\xc3")], Utf8Error, "not UTF-8"),
        ([Frame(BINARY, bytes(1001))], MessageTooLarge, "1001 bytes"),
        ([part, Frame(CONTINUATION, bytes(997), fin=False)], MessageTooLarge, "1001 bytes"),
        ([part, *[Frame(CONTINUATION, fin=False)] * 9, Frame(CONTINUATION)], InvalidFrame, "10 fragments"),
    ],
)
def test_refusals_name_the_rule_and_forget_the_message(frames: list[Frame], error: type[Exception], text: str) -> None:
    reassembler = Reassembler(LIMIT, 10)
    connection, other = ConnectionId.new(), ConnectionId.new()
    reassembler.feed(other, Frame(BINARY, b"other", fin=False))
    feed_all(reassembler, connection, frames[:-1])
    with pytest.raises(error, match=text) as caught:
        reassembler.feed(connection, frames[-1])
    if isinstance(caught.value, InvalidFrame):
        assert caught.value.code == (1008 if "fragments" in text else 1002)
    if isinstance(caught.value, MessageTooLarge):
        assert (caught.value.size, caught.value.limit) == (1001, LIMIT)
    assert len(reassembler) == 1
    # Neither the connection that failed nor the others suffer.
    assert reassembler.feed(connection, Frame(TEXT, b"next")) == Message("next")
    assert reassembler.feed(other, Frame(CONTINUATION)) == Message(b"other")


def test_number_of_unfinished_messages_is_bounded() -> None:
    reassembler = Reassembler(LIMIT, max_connections=2)
    first, second, third = (ConnectionId.new() for _ in range(3))
    reassembler.feed(first, Frame(TEXT, b"1", fin=False))
    reassembler.feed(second, Frame(TEXT, b"2", fin=False))
    with pytest.raises(ConnectionLimitExceeded) as caught:
        reassembler.feed(third, Frame(TEXT, b"3", fin=False))
    assert caught.value.limit == 2
    # Whole messages, control frames and the unfinished ones are still served.
    assert reassembler.feed(third, Frame(TEXT, b"whole")) == Message("whole")
    assert reassembler.feed(third, Frame(PING)) == Message.ping()
    assert reassembler.feed(first, Frame(CONTINUATION, b"1", fin=False)) is None
    assert reassembler.feed(first, Frame(CONTINUATION)) == Message("11")
    assert reassembler.feed(third, Frame(TEXT, b"3", fin=False)) is None
    assert len(reassembler) == 2


def test_discard_forgets() -> None:
    reassembler = Reassembler(LIMIT)
    connection = ConnectionId.new()
    reassembler.discard(connection)
    reassembler.feed(connection, Frame(TEXT, b"x" * 500, fin=False))
    assert reassembler.held_bytes == 500
    reassembler.discard(connection)
    assert (len(reassembler), reassembler.held_bytes) == (0, 0)
    with pytest.raises(InvalidFrame):
        reassembler.feed(connection, Frame(CONTINUATION))
    assert reassembler  # not false for being empty


@pytest.mark.parametrize("payload", [b"", b"x"])
def test_memory_is_bounded_by_the_limit(payload: bytes) -> None:
    reassembler = Reassembler(LIMIT, 5000)
    connection = ConnectionId.new()
    reassembler.feed(connection, Frame(BINARY, payload, fin=False))
    for _ in range(LIMIT - 1 if payload else 4999):
        reassembler.feed(connection, Frame(CONTINUATION, payload, fin=False))
        assert reassembler.held_bytes <= LIMIT
    with pytest.raises(MessageTooLarge if payload else InvalidFrame):
        reassembler.feed(connection, Frame(CONTINUATION, payload, fin=False))
    assert reassembler.held_bytes == 0


fault_frames = st.builds(
    Frame,
    st.sampled_from([0, 0, 0, 1, 2, 8, 9, 10]),
    st.one_of(st.binary(max_size=6), st.text(max_size=3).map(str.encode)),
    rsv1=st.sampled_from([False] * 9 + [True]),
)
data_frames = st.builds(Frame, st.sampled_from([0, 0, 1, 2]), st.binary(max_size=6), fin=st.booleans())


@given(st.lists(st.tuples(st.integers(0, 3), st.one_of(fault_frames, data_frames)), max_size=40))
def test_only_documented_errors(sequence: list[tuple[int, Frame]]) -> None:
    reassembler = Reassembler(12, 4, max_connections=2)
    for connection, frame in sequence:
        try:
            message = reassembler.feed(connection, frame)
        except (InvalidFrame, Utf8Error, MessageTooLarge, ConnectionLimitExceeded):
            message = None
        assert message is None or len(message) <= 12
        assert len(reassembler) <= 2
        assert reassembler.held_bytes <= 24


# --- limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1])
def test_limits_below_one(value: int) -> None:
    with pytest.raises(ValueError, match=f"max_fragment_size must be at least 1, got {value}"):
        Fragmenter(value)
    with pytest.raises(ValueError, match="max_message_size"):
        Reassembler(value)
    with pytest.raises(ValueError, match="max_fragments"):
        Reassembler(1, value)
    with pytest.raises(ValueError, match="max_connections"):
        Reassembler(1, max_connections=value)


@pytest.mark.parametrize("value", [1.5, "1", None, True])
def test_limits_that_are_not_int(value: object) -> None:
    with pytest.raises(TypeError, match="max_fragment_size must be an int"):
        Fragmenter(value)
    with pytest.raises(TypeError, match="max_message_size must be an int"):
        Reassembler(value)
    with pytest.raises(TypeError, match="max_fragments must be an int"):
        Reassembler(1, value)
