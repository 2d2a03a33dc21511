"""Commands of the Centrifugal protocol as they are read, and JSON as it is put into pushes."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric._centrifuge import wire
from fabric._centrifuge.wire import Malformed, Refused


def read(text: str) -> list[tuple[int, str]]:
    return [(command.id, command.request()[0]) for command in wire.commands(text)]


def test_a_frame_has_one_command_in_each_line() -> None:
    assert read('{"id":1,"connect":{}}') == [(1, "connect")]
    assert read('{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"a"}}\n{}') == [
        (1, "connect"),
        (2, "subscribe"),
        (0, ""),
    ]
    assert read('{"id":1,"rpc":{}}\n') == [(1, "rpc")]


def test_the_first_request_counts_and_what_is_unknown_is_left_out() -> None:
    assert read('{"id":1,"publish":{},"subscribe":{},"new":1}') == [(1, "subscribe")]
    assert read('{"id":1,"connect":null,"subscribe":{"tf":{},"channel":"a"}}') == [(1, "subscribe")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "{}\n\n{}",
        "[]",
        "null",
        "1",
        '"connect"',
        "{",
        '{"id":-1}',
        '{"id":4294967296}',
        '{"id":"1"}',
        '{"id":1.5}',
        '{"id":1,"subscribe":[]}',
        '{"id":1,"subscribe":{"channel":7}}',
        '{"id":1,"subscribe":{"channel":null}}',
        '{"id":1,"subscribe":{"channel":"a","offset":-1}}',
        '{"id":1,"history":{"channel":"a","limit":"all"}}',
        '{"id":1,"rpc":{"data":tru}}',
        '{"id":1,"rpc":{"data":"\\ud800"}}',
        '{"id":1,"rpc":{"data":"\x01"}}',
    ],
)
def test_what_is_no_command_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        read(text)


def test_what_is_nested_beyond_reason_crashes_nothing() -> None:
    """How deep may be read depends on the version of CPython, and on the stack."""
    with contextlib.suppress(Malformed):
        read('{"id":1,"rpc":{"data":' + "[" * 100_000 + "]" * 100_000 + "}}")


@given(st.text(alphabet='{}[]":,\n0123456789.-eidconectsubrhal\\utfn\u2028 ', max_size=80))
def test_whatever_comes_is_read_or_malformed(text: str) -> None:
    with contextlib.suppress(Malformed):
        read(text)


def test_commands_before_a_malformed_one_are_read() -> None:
    found = wire.commands('{"id":1,"connect":{}}\nnonsense\n{"id":2}')
    assert next(found).id == 1
    with pytest.raises(Malformed):
        next(found)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.sampled_from([None, 0, 2]))
def test_json_is_put_into_a_push_as_it_is_and_on_one_line(value: Any, indent: int | None) -> None:
    put = wire.as_json(json.dumps(value, indent=indent).encode())
    assert "\n" not in put
    assert json.loads(put) == value


@given(st.text())
def test_text_that_is_no_json_becomes_a_string(text: str) -> None:
    payload = text.encode()
    put = json.loads(wire.as_json(payload))
    try:
        expected = json.loads(text)
    except ValueError:
        expected = text
    assert put == expected or put == text  # what Python takes for JSON besides (NaN, say) is text


@pytest.mark.parametrize(
    ("payload", "put"),
    [
        (b"{", '"{"'),
        (b'1},"id":2,"x":{', '"1},\\"id\\":2,\\"x\\":{"'),
        (b"NaN", '"NaN"'),
        (b"", '""'),
        (b"\xff\x00", '"/wA="'),
        (b'"\xed\xa0\x80"', '"Iu2ggCI="'),
        (b"[1,\n2]", "[1,2]"),
        (b"1e999", "1e999"),
    ],
)
def test_nothing_gets_out_of_its_place(payload: bytes, put: str) -> None:
    assert wire.as_json(payload) == put


def test_answers() -> None:
    assert json.loads(wire.reply(7, "rpc", '{"data":1}')) == {"id": 7, "rpc": {"data": 1}}
    assert json.loads(wire.push('a"b', "pub", '{"data":1}')) == {"push": {"channel": 'a"b', "pub": {"data": 1}}}
    assert json.loads(wire.error(7, Refused(103, 'per"mission'))) == {
        "id": 7,
        "error": {"code": 103, "message": 'per"mission'},
    }
    assert json.loads(wire.error(7, Refused(400, "later", temporary=True)))["error"]["temporary"] is True


@pytest.mark.parametrize("code", [0, 99, 2000, 2999, 5000])
def test_a_refusal_has_a_code_of_an_error_or_of_a_close(code: int) -> None:
    with pytest.raises(ValueError, match=str(code)):
        Refused(code, "no")


def test_the_message_of_a_refusal_fits_into_a_close() -> None:
    assert Refused(4500, "x" * 123).message == "x" * 123
    with pytest.raises(ValueError, match="123"):
        Refused(4500, "ü" * 62)


def test_decoded_data() -> None:
    (command,) = wire.commands('{"id":1,"rpc":{"data":{"a":[1]}}}')
    assert command.rpc is not None
    assert wire.decoded(command.rpc.data) == {"a": [1]}
    (command,) = wire.commands('{"id":1,"rpc":{}}')
    assert command.rpc is not None
    assert wire.decoded(command.rpc.data) is None
    (command,) = wire.commands('{"id":1,"rpc":{"data":1e999}}')
    assert command.rpc is not None
    with pytest.raises(Refused, match="bad request"):
        wire.decoded(command.rpc.data)
