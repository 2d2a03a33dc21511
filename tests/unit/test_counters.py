"""`fabric_ext.counters`: the numbers, their sum, and what a reset keeps."""

from __future__ import annotations

import time

import pytest

from fabric_ext.counters import FIELDS, Counters, coarse_monotonic_now

SPEC_FIELDS = {
    "active_connections",
    "total_connections",
    "messages_sent",
    "messages_received",
    "bytes_sent",
    "bytes_received",
    "send_errors",
    "receive_errors",
}


def numbered(start: int) -> Counters:
    counters = Counters()
    for offset, name in enumerate(FIELDS):
        setattr(counters, name, start + offset)
    return counters


def test_starts_at_zero_and_names_what_the_contract_names() -> None:
    counters = Counters()
    assert set(FIELDS) >= SPEC_FIELDS
    assert counters.as_dict() == dict.fromkeys(FIELDS, 0)
    assert counters.last_activity_ns == 0
    assert repr(counters) == "Counters()"


def test_fields_are_exactly_the_public_integers() -> None:
    public = {name for name in vars(Counters) if not name.startswith(("_", "record_"))}
    assert public - {"add", "reset", "as_dict"} == {*FIELDS, "last_activity_ns"}


def test_add_adds_every_field_and_takes_the_later_activity() -> None:
    a, b = numbered(100), numbered(1000)
    a.last_activity_ns, b.last_activity_ns = 7, 5
    a.add(b)
    assert a.as_dict() == {name: 1100 + 2 * offset for offset, name in enumerate(FIELDS)}
    assert b.as_dict() == {name: 1000 + offset for offset, name in enumerate(FIELDS)}
    assert a.last_activity_ns == 7
    b.add(a)
    assert b.last_activity_ns == 7
    with pytest.raises(TypeError):
        a.add(None)  # type: ignore[arg-type]


def test_reset_keeps_open_connections() -> None:
    counters = numbered(1)
    counters.last_activity_ns = 9
    counters.reset()
    assert counters.as_dict() == dict.fromkeys(FIELDS, 0) | {"active_connections": 1}
    assert counters.last_activity_ns == 9


@pytest.mark.parametrize(
    ("record", "arguments", "counted"),
    [
        ("record_connection", (), {"active_connections": 1, "total_connections": 1}),
        ("record_disconnection", (), {"active_connections": -1}),
        ("record_reconnection", (), {"reconnections": 1}),
        ("record_message_sent", (7,), {"messages_sent": 1, "bytes_sent": 7}),
        ("record_message_received", (7,), {"messages_received": 1, "bytes_received": 7}),
        ("record_send_error", (), {"send_errors": 1}),
        ("record_receive_error", (), {"receive_errors": 1}),
        ("record_slow_peer_drop", (), {"slow_peer_drops": 1}),
        ("record_slow_peer_drop", (3,), {"slow_peer_drops": 3}),
    ],
)
def test_each_record_method_counts_its_own(record: str, arguments: tuple[int, ...], counted: dict[str, int]) -> None:
    counters = Counters()
    getattr(counters, record)(*arguments)
    assert {name: value for name, value in counters.as_dict().items() if value} == counted
    getattr(counters, record)(*arguments)
    assert {name: value for name, value in counters.as_dict().items() if value} == {
        name: 2 * value for name, value in counted.items()
    }


@pytest.mark.parametrize(
    ("record", "arguments"),
    [
        ("record_connection", ()),
        ("record_disconnection", ()),
        ("record_message_sent", (1,)),
        ("record_message_received", (1,)),
    ],
)
def test_traffic_is_activity(record: str, arguments: tuple[int, ...]) -> None:
    counters = Counters()
    before = coarse_monotonic_now()
    getattr(counters, record)(*arguments)
    assert before <= counters.last_activity_ns <= coarse_monotonic_now()


def test_holds_64_bits_and_refuses_more() -> None:
    counters = Counters()
    counters.bytes_sent = 2**63 - 1
    assert counters.bytes_sent == 2**63 - 1
    with pytest.raises(OverflowError):
        counters.bytes_sent = 2**63
    with pytest.raises(TypeError):
        counters.bytes_sent = "1"  # type: ignore[assignment]


def test_repr_shows_only_what_happened() -> None:
    counters = Counters()
    counters.messages_sent = 3
    assert repr(counters) == "Counters(messages_sent=3)"


def test_coarse_clock_is_the_monotonic_clock() -> None:
    before = time.monotonic_ns()
    coarse = coarse_monotonic_now()
    assert before - 100_000_000 < coarse <= time.monotonic_ns()
