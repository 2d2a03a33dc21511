"""Messages: what they are made of, what they refuse, JSON with types, and that they are values."""

from __future__ import annotations

import array
import copy
import dataclasses
import enum
import gc
import math
import pickle
import sys
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.error import Error, JsonError, Utf8Error
from fabric.message import Message, MessageType
from fabric_ext import message as module

KINDS = {
    MessageType.TEXT: Message.text("a"),
    MessageType.BINARY: Message.binary(b"a"),
    MessageType.CLOSE: Message.close(1000, "a"),
    MessageType.PING: Message.ping(b"a"),
    MessageType.PONG: Message.pong(b"a"),
}

encodable = st.text(st.characters(exclude_categories=["Cs"]))
messages = st.one_of(
    encodable.map(Message.text),
    st.binary().map(Message.binary),
    st.binary(max_size=125).map(Message.ping),
    st.binary(max_size=125).map(Message.pong),
    st.builds(Message.close, st.integers(3000, 4999), st.text("aé€", max_size=40)),
)


# --- construction


@given(encodable)
def test_text_is_kept_and_counted_in_utf8(text: str) -> None:
    message = Message(text)
    assert message == Message.text(text)
    assert message.as_text() == text
    assert message.payload == message.as_bytes() == text.encode()
    assert len(message) == len(text.encode())
    assert message.is_empty == (text == "")
    assert message.is_text


@given(st.binary())
def test_bytes_are_kept(data: bytes) -> None:
    message = Message(data)
    assert message == Message.binary(data)
    assert message.payload == message.as_bytes() == data
    assert len(message) == len(data)
    assert message.is_binary


@pytest.mark.parametrize("make", [Message, Message.binary, Message.ping, Message.pong])
@pytest.mark.parametrize(
    "data",
    [b"abc", bytearray(b"abc"), memoryview(b"abc"), memoryview(b"cba")[::-1], array.array("B", b"abc")],
)
def test_takes_any_buffer(make, data) -> None:
    assert make(data).payload == b"abc"


def test_copies_what_can_change_and_nothing_else() -> None:
    changing, constant = bytearray(b"abc"), b"abcdefgh" * 100
    message = Message(changing)
    changing[:] = b"xyz"
    assert message.payload == b"abc"
    assert Message(constant).payload is constant


def test_a_message_of_a_message_is_equal() -> None:
    for message in KINDS.values():
        assert Message(message) == message


@pytest.mark.parametrize("value", [None, 1, 1.5, ["a"], {"a": 1}, object(), range(3)])
@pytest.mark.parametrize("make", [Message, Message.text, Message.binary, Message.ping, Message.pong])
def test_refuses_other_types(make, value) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        make(value)


def test_the_error_for_other_types_names_json() -> None:
    with pytest.raises(TypeError, match=r"not dict: Message\.json\(\) makes one of any value"):
        Message({"a": 1})  # type: ignore[arg-type]
    assert Message.json({"a": 1}) == Message('{"a":1}')


def test_text_and_binary_are_not_mixed_up() -> None:
    with pytest.raises(TypeError):
        Message.text(b"abc")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Message.binary("abc")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [Message, Message.text, Message.ping, Message.json])
def test_lone_surrogates_have_no_utf8(make) -> None:
    with pytest.raises(Utf8Error):
        make("ok \ud800")


def test_subclasses_leave_their_attributes_behind() -> None:
    class Text(str):
        pass

    class Data(bytes):
        def __bytes__(self) -> bytes:
            return self

    class Colour(enum.StrEnum):
        RED = "red"

    text, data = Text("abc"), Data(b"abc")
    text.loop = Message  # type: ignore[attr-defined]
    assert type(Message(text).as_text()) is str
    assert type(Message(data).payload) is bytes
    assert Message(Colour.RED) == Message("red")


def test_new_alone_makes_an_empty_message() -> None:
    assert Message.__new__(Message) == Message(b"")


# --- control messages


@pytest.mark.parametrize("make", [Message.ping, Message.pong])
def test_pings_and_pongs_carry_at_most_125_bytes(make) -> None:
    assert make().payload == b""
    assert make("é").payload == "é".encode()
    assert len(make(bytes(125))) == 125
    for long in (bytes(126), "é" * 63):
        with pytest.raises(ValueError, match="126 bytes"):
            make(long)


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 4999])
def test_close_codes_that_may_be_sent(code: int) -> None:
    message = Message.close(code, "bye")
    assert message.payload == code.to_bytes(2, "big") + b"bye"
    assert (message.close_code, message.close_reason) == (code, "bye")


@pytest.mark.parametrize(
    "code", [-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_536, 2**40 + 1000, "1000", 1000.0, True]
)
def test_close_codes_that_may_not(code) -> None:
    with pytest.raises(ValueError, match="close code"):
        Message.close(code)


def test_an_empty_close_has_no_code() -> None:
    message = Message.close(None)
    assert message.payload == b""
    assert (message.close_code, message.close_reason) == (1005, "")
    with pytest.raises(ValueError, match="reason needs"):
        Message.close(None, "because")


def test_a_close_reason_fits_with_its_code() -> None:
    assert len(Message.close(1000, "x" * 123)) == 125
    with pytest.raises(ValueError, match="124 bytes"):
        Message.close(1000, "é" * 62)
    with pytest.raises(TypeError):
        Message.close(1000, b"bye")  # type: ignore[arg-type]


def test_only_a_close_has_a_code() -> None:
    for kind, message in KINDS.items():
        if kind is not MessageType.CLOSE:
            assert message.close_code is None
            assert message.close_reason is None


def test_every_kind_knows_what_it_is() -> None:
    for kind, message in KINDS.items():
        assert message.msg_type is kind
        flags = [name for name in KINDS if getattr(message, f"is_{name.name.lower()}")]
        assert flags == [kind]


def test_as_text_decodes_or_says_why_not() -> None:
    assert Message(b"caf\xc3\xa9").as_text() == "café"
    with pytest.raises(Utf8Error, match="0xff"):
        Message(b"abc\xff").as_text()


# --- JSON


class Point(msgspec.Struct):
    x: int
    y: int


@dataclasses.dataclass
class Order:
    symbol: str
    prices: list[float]


class Row(TypedDict):
    id: int


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | encodable,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(encodable, inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_json_goes_there_and_back(value: Any) -> None:
    message = Message.json(value)
    assert message.is_text
    assert message.parse_json() == value
    assert Message.binary(message.payload).parse_json() == value


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (Point(1, 2), Point),
        (Order("X", [1.5]), Order),
        (Row(id=3), Row),
        ([1, 2], list[int]),
        ({"a": (1, 2)}, dict[str, tuple[int, int]]),
        (5, int | str),
        ("a", Literal["a", "b"]),
    ],
)
def test_json_into_a_type(value: Any, type_: Any) -> None:
    parsed = Message.json(value).parse_json(type_)
    assert parsed == value
    assert type(parsed) is type(value)
    assert Message.json(value).parse_json(type=type_) == value


@pytest.mark.parametrize(
    ("document", "type_", "path"),
    [
        ('{"x": 1, "y": "2"}', Point, "$.y"),
        ('{"x": 1}', Point, "$"),
        ('{"symbol": "X", "prices": [1, 2, "3"]}', Order, "$.prices[2]"),
        ('{"a": [1, "x"]}', dict[str, list[int]], "$[...][1]"),
        ('"c"', Literal["a"], "$"),
    ],
)
def test_json_of_another_type_tells_where(document: str, type_: Any, path: str) -> None:
    with pytest.raises(JsonError) as caught:
        Message(document).parse_json(type_)
    assert caught.value.path == path
    assert str(caught.value).count(f"at {path}") == 1
    assert isinstance(caught.value.__cause__, msgspec.ValidationError)


@pytest.mark.parametrize("document", ["", "{", "[1,]", "nul", "{'a': 1}", b'"\xff"', b"\x00", "1 2"])
@pytest.mark.parametrize("type_", [Any, list[int], Point])
def test_what_is_not_json_has_no_path(document: str | bytes, type_: Any) -> None:
    with pytest.raises(JsonError) as caught:
        Message(document).parse_json(type_)
    assert caught.value.path in ("", "$")
    assert isinstance(caught.value, Error)


def test_a_deep_nest_of_brackets_is_just_a_bad_document() -> None:
    with pytest.raises(JsonError) as caught:
        Message("[" * 100_000).parse_json()
    assert caught.value.path == ""
    assert len(str(caught.value)) < 300


def test_json_that_cannot_be() -> None:
    with pytest.raises(TypeError):
        Message.json(object())
    with pytest.raises(TypeError):
        Message("1").parse_json(3)  # not a type
    assert Message.json(math.nan).as_text() == "null"


def test_a_type_that_is_no_key_works() -> None:
    type_ = Annotated[int, msgspec.Meta(extra={"unit": ["ns"]})]
    assert Message("1").parse_json(type_) == 1


def test_decoders_are_kept_within_bounds() -> None:
    Message("1").parse_json(int)  # msgspec is imported when it is needed
    cache = module._decoder_for
    cache.cache_clear()
    for _ in range(3):
        Message("[1]").parse_json(list[int])
    assert (cache.cache_info().misses, cache.cache_info().hits) == (1, 2)
    for i in range(2 * cache.cache_info().maxsize):
        Message("1").parse_json(Annotated[int, msgspec.Meta(ge=-i)])
    assert cache.cache_info().currsize == cache.cache_info().maxsize
    cache.cache_clear()


# --- value


@given(messages, messages)
def test_equal_means_same_type_and_payload(one: Message, other: Message) -> None:
    assert (one == other) == ((one.msg_type, one.payload) == (other.msg_type, other.payload))
    if one == other:
        assert hash(one) == hash(other)


def test_text_and_binary_of_the_same_bytes_differ() -> None:
    assert Message("a") != Message(b"a")
    assert len({*KINDS.values()}) == len(KINDS)


@given(encodable)
def test_a_text_equals_its_str(text: str) -> None:
    message = Message(text)
    assert message == text
    assert text == message
    assert hash(message) == hash(text)
    assert message.data == message.text == text
    assert message != text + "x"
    assert message != text.encode()


@given(st.binary())
def test_a_binary_equals_its_bytes(data: bytes) -> None:
    message = Message(data)
    assert message == data
    assert data == message
    assert message == bytearray(data)
    assert message == memoryview(data)
    assert hash(message) == hash(data)
    assert message.data == bytes(message) == data
    assert message != data + b"x"


def test_nothing_else_equals_a_message() -> None:
    assert Message("a") != b"a"
    assert Message(b"a") != "a"
    for control in (Message.ping(b"a"), Message.pong(b"a"), Message.close(None)):
        assert control != bytes(control)
    assert Message("1") != 1


def test_a_message_is_read_by_the_names_that_make_one() -> None:
    assert Message.text("a").text == "a"
    assert Message.json({"a": 1}).json() == {"a": 1}
    assert Message.json([1]).json(list[int]) == [1]
    assert Message(b"caf\xc3\xa9").text == "café"
    with pytest.raises(Utf8Error):
        _ = Message(b"\xff").text
    with pytest.raises(JsonError):
        Message("{").json()


def test_a_kind_is_printed_by_its_name() -> None:
    assert f"{MessageType.TEXT} {MessageType.PONG:>6}" == "TEXT   PONG"
    assert str(MessageType.CLOSE) == "CLOSE"


@given(messages)
def test_survives_pickle_and_copy(message: Message) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        twin = pickle.loads(pickle.dumps(message, protocol))
        assert twin == message
        assert hash(twin) == hash(message)
    assert copy.deepcopy(message) == message


@pytest.mark.parametrize(
    ("kind", "data", "error"),
    [
        (0, b"", ValueError),
        (7, b"", ValueError),
        (1, b"a", TypeError),
        (2, "a", TypeError),
        (9, bytes(126), ValueError),
    ],
)
def test_a_forged_pickle_is_checked(kind: int, data: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        module._restore(kind, data)


def test_an_empty_message_is_true() -> None:
    assert Message("")
    assert len(Message("")) == 0


@given(messages)
def test_repr_is_short_and_on_one_line(message: Message) -> None:
    assert len(repr(message)) < 400
    assert "\n" not in repr(message)
    assert repr(message).startswith(f"<Message {message.msg_type.name}")


def test_repr_never_dumps_a_payload() -> None:
    assert repr(Message("hello")) == "<Message TEXT 'hello', 5 bytes>"
    assert repr(Message.close(1001, "bye")) == "<Message CLOSE 1001 b'bye'>"
    assert repr(Message("x" * 10**6)) == f"<Message TEXT '{'x' * 32}'…, 1000000 bytes>"


def test_is_immutable_and_final() -> None:
    message = Message("a")
    with pytest.raises(AttributeError):
        message.payload = b"b"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        message.extra = 1  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        type("Sub", (Message,), {})


def test_is_small_and_left_alone_by_the_collector() -> None:
    assert not gc.is_tracked(Message("a"))
    assert sys.getsizeof(Message("a")) == 40


def test_dropped_messages_give_their_payload_back() -> None:
    payload = b"p" * 100
    before = sys.getrefcount(payload)
    for _ in range(3):
        held = [Message(payload) for _ in range(1000)]  # more than the free list holds
        assert sys.getrefcount(payload) == before + len(held)
        del held
        assert sys.getrefcount(payload) == before
