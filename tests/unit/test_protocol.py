"""fabric_ext.protocol: the table of states, and what a close frame's body may say (RFC 6455 §7.4, §8.1)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_ext.frames import Fault
from fabric_ext.protocol import MAX_REASON, Event, State, check_close, move, parse_close

MOVES = {
    (State.CONNECTING, Event.OPENED): State.OPEN,
    (State.CONNECTING, Event.ENDED): State.CLOSED,
    (State.OPEN, Event.CLOSE_BEGUN): State.CLOSING,
    (State.OPEN, Event.LOST): State.RECONNECTING,
    (State.OPEN, Event.ENDED): State.CLOSED,
    (State.CLOSING, Event.CLOSE_BEGUN): State.CLOSING,  # both sides begin at once
    (State.CLOSING, Event.LOST): State.RECONNECTING,
    (State.CLOSING, Event.ENDED): State.CLOSED,
    (State.RECONNECTING, Event.OPENED): State.OPEN,
    (State.RECONNECTING, Event.ENDED): State.CLOSED,
    (State.CLOSED, Event.ENDED): State.CLOSED,
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_each_entry_of_the_table(state: State, event: Event) -> None:
    if (state, event) in MOVES:
        assert move(state, event) is MOVES[state, event]
    else:
        with pytest.raises(ValueError, match=f"no move from {state.name} by {event.name}"):
            move(state, event)


def test_nothing_leads_out_of_closed() -> None:
    assert {after for (before, _), after in MOVES.items() if before is State.CLOSED} == {State.CLOSED}


def close_body(code: int, reason: bytes = b"") -> bytes:
    return code.to_bytes(2, "big") + reason


def seen(body: bytes) -> tuple[int, str, Fault]:
    close = parse_close(body)
    return close.code, close.reason, Fault(close.fault)


def test_no_body_is_1005() -> None:
    assert seen(b"") == (1005, "", Fault.NO_FAULT)


@pytest.mark.parametrize("byte", [b"\0", b"\x03", b"\xff"])
def test_one_byte_is_no_code(byte: bytes) -> None:
    assert parse_close(byte).fault == Fault.BAD_CLOSE


def may_be_sent(code: int) -> bool:
    """RFC 6455 §7.4.2, and IANA's registry: 1012 to 1014 were added to it."""
    return code in (1000, 1001, 1002, 1003, *range(1007, 1015)) or 3000 <= code < 5000


def test_every_code() -> None:
    for code in range(65536):
        expected = Fault.NO_FAULT if may_be_sent(code) else Fault.BAD_CLOSE
        assert seen(close_body(code)) == (code, "", expected)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
def test_codes_that_must_not_be_sent(code: int) -> None:
    assert parse_close(close_body(code, b"reason")).fault == Fault.BAD_CLOSE


@pytest.mark.parametrize("reason", ["", "bye", "é", "日本語", "💥", "x" * 123, "é" * 61])
def test_reasons(reason: str) -> None:
    assert seen(close_body(1000, reason.encode())) == (1000, reason, Fault.NO_FAULT)


@pytest.mark.parametrize("reason", [b"\xff", b"\xc3", b"ok\xc3(", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"])
def test_a_reason_that_is_not_utf8(reason: bytes) -> None:
    assert parse_close(close_body(1000, reason)).fault == Fault.BAD_CLOSE_TEXT


def test_a_bad_code_counts_before_a_bad_reason() -> None:
    assert parse_close(close_body(1005, b"\xff")).fault == Fault.BAD_CLOSE


@given(st.binary(max_size=125))
def test_any_body(body: bytes) -> None:
    code, reason, fault = seen(body)
    if fault is Fault.NO_FAULT and body:
        assert close_body(code, reason.encode()) == body
        assert may_be_sent(code)
    assert fault in (Fault.NO_FAULT, Fault.BAD_CLOSE, Fault.BAD_CLOSE_TEXT)


def test_a_state_is_printed_by_its_name() -> None:
    assert f"{State.OPEN} {State.RECONNECTING:>14}" == "OPEN   RECONNECTING"
    assert str(State.CLOSED) == "CLOSED"
    assert State.CLOSED == 4


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1014, 3000, 4999])
def test_what_a_close_may_say(code: int) -> None:
    check_close(code, "é" * 61)  # two bytes each
    with pytest.raises(ValueError, match=f"124 bytes of UTF-8, allowed are at most {MAX_REASON}"):
        check_close(code, "é" * 62)
    with pytest.raises(TypeError, match="close reason must be str, not bytes"):
        check_close(code, b"")  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [0, -1, 999, 1004, 1005, 1006, 1015, 2999, 5000, 1 << 70, 1000.0, "1000", None])
def test_a_close_code_that_may_not_be_sent(code: Any) -> None:
    with pytest.raises(ValueError, match=f"close code is {code!r}"):
        check_close(code, "")
