"""fabric.reconnect: the schedule, and what is final. No clock, no sleep."""

from __future__ import annotations

import asyncio
import math
import random
import socket
import ssl
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.config import ReconnectConfig
from fabric.error import (
    AuthenticationFailed,
    BackpressureTimeout,
    BufferFull,
    CompressionError,
    ConnectionClosed,
    ConnectionFailed,
    HandshakeFailed,
    InvalidFrame,
    Io,
    MessageTooLarge,
    ReconnectTimeout,
    SubprotocolNegotiationFailed,
    Timeout,
    Tls,
    Utf8Error,
)
from fabric.headers import HeaderMap
from fabric.reconnect import (
    FINAL_CLOSE_CODES,
    MAX_RETRY_AFTER,
    ReconnectState,
    parse_retry_after,
    retry_after,
    should_retry,
)

EXACT = ReconnectConfig(jitter=0)


def delays(state: ReconnectState, count: int) -> list[float]:
    found = []
    for _ in range(count):
        delay = state.next_delay()
        assert delay is not None
        found.append(delay)
    return found


# The schedule.


def test_grows_to_the_maximum() -> None:
    state = ReconnectState(EXACT)
    assert delays(state, 5) == pytest.approx([0.1, 0.15, 0.225, 0.3375, 0.50625])
    assert delays(state, 20)[-1] == 30
    assert state.attempts == 25


def test_never_overflows() -> None:
    state = ReconnectState(EXACT.with_backoff_multiplier(1e300))
    assert delays(state, 10_000)[1:] == [30.0] * 9999


def test_can_stay_the_same() -> None:
    config = EXACT.with_backoff_multiplier(1).with_initial_delay(2)
    assert delays(ReconnectState(config), 5) == [2.0] * 5


@given(jitter=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_jitter_only_shortens_and_by_its_part_at_most(jitter: float, seed: int) -> None:
    state = ReconnectState(ReconnectConfig(jitter=jitter), random.Random(seed))
    for delay, whole in zip(delays(state, 30), delays(ReconnectState(EXACT), 30), strict=True):
        assert whole * (1 - jitter) <= delay <= whole


def test_full_jitter_is_spread_evenly(rng: random.Random) -> None:
    """1,000 clients that lose one server come back all over the second, not in a heap."""
    config = ReconnectConfig(initial_delay=1, jitter=1)
    counts = [0] * 10
    for _ in range(1000):
        delay = ReconnectState(config, rng).next_delay()
        assert delay is not None
        counts[int(delay * 10)] += 1
    assert min(counts) > 50, counts
    assert max(counts) < 160, counts


def test_the_same_generator_gives_the_same_schedule() -> None:
    config = ReconnectConfig()
    one, same, other = (ReconnectState(config, random.Random(seed)) for seed in (1, 1, 2))
    first = delays(one, 10)
    assert first == delays(same, 10)
    assert first != delays(other, 10)
    assert delays(ReconnectState(config), 10) != delays(ReconnectState(config), 10)


def test_max_attempts() -> None:
    state = ReconnectState(EXACT.with_max_attempts(3))
    assert not state.is_exhausted
    delays(state, 3)
    assert state.is_exhausted
    assert state.next_delay() is None
    assert state.attempts == 3
    state.reset()
    assert delays(state, 3)[0] == 0.1


def test_disabled_never_tries() -> None:
    state = ReconnectState(EXACT.with_enabled(False))
    assert state.is_exhausted
    assert state.next_delay() is None
    assert state.attempts == 0


def test_a_stable_connection_starts_over() -> None:
    state = ReconnectState(EXACT.with_stable_after(5))
    delays(state, 10)
    state.connected(100.0)
    assert state.is_connected
    state.disconnected(105.0)
    assert not state.is_connected
    assert state.attempts == 0
    assert state.next_delay() == 0.1


def test_a_server_that_accepts_and_closes_is_not_hammered() -> None:
    state = ReconnectState(EXACT.with_stable_after(5))
    now, attempts = 0.0, 0
    while now < 600:
        [delay] = delays(state, 1)
        now += delay
        attempts += 1
        state.connected(now)
        now += 4.999
        state.disconnected(now)
    assert attempts < 40
    assert state.attempts == attempts


def test_connected_alone_changes_nothing() -> None:
    state = ReconnectState(EXACT)
    delays(state, 3)
    state.connected(0.0)
    assert state.attempts == 3
    assert state.next_delay() == pytest.approx(0.3375)


def test_disconnected_without_a_connection() -> None:
    state = ReconnectState(EXACT)
    delays(state, 3)
    state.disconnected(1e9)
    assert state.attempts == 3
    state.connected(0.0)
    state.disconnected(1.0)
    state.disconnected(1e9)  # heard twice
    assert state.attempts == 3


def test_every_connection_is_stable_if_so_configured() -> None:
    state = ReconnectState(EXACT.with_stable_after(0))
    delays(state, 3)
    state.connected(7.0)
    state.disconnected(7.0)
    assert state.attempts == 0


def test_retry_after_is_the_least() -> None:
    state = ReconnectState(EXACT)
    assert state.next_delay(retry_after=7) == 7
    assert state.next_delay(retry_after=0.01) == pytest.approx(0.15)
    assert state.next_delay(retry_after=100) == 100  # above max_delay
    assert state.next_delay() == pytest.approx(0.3375)  # goes on as if it had not been


def test_retry_after_is_jittered_upwards(rng: random.Random) -> None:
    drawn = {ReconnectState(ReconnectConfig(jitter=1), rng).next_delay(retry_after=5) for _ in range(100)}
    assert len(drawn) > 90
    assert all(delay is not None and 5 <= delay <= 5.1 for delay in drawn)


def test_repr() -> None:
    state = ReconnectState(EXACT)
    state.next_delay()
    assert repr(state) == "ReconnectState(attempts=1 of no limit, next delay up to 0.15 s)"


# What is final.


@pytest.mark.parametrize("code", range(1000, 1016))
def test_close_codes(code: int) -> None:
    assert {1000, 1002, 1003, 1007, 1008, 1010} == FINAL_CLOSE_CODES
    assert should_retry(ConnectionClosed(code)) == (code not in FINAL_CLOSE_CODES)


@pytest.mark.parametrize("code", [3000, 4000, 4999])
def test_codes_of_applications_are_retried(code: int) -> None:
    assert should_retry(ConnectionClosed(code))


def failed_here(code: int, cause: BaseException) -> ConnectionClosed:
    closed = ConnectionClosed(code, by="local")
    closed.__cause__ = cause
    return closed


def test_a_local_close_is_final() -> None:
    assert not should_retry(ConnectionClosed(1001, by="local"))
    assert not should_retry(ConnectionClosed(4000, by="local"))


@pytest.mark.parametrize(
    ("failure", "retried"),
    [
        (failed_here(1002, InvalidFrame("malformed close frame")), True),
        (failed_here(1002, InvalidFrame("unknown opcode")), True),
        (failed_here(1007, Utf8Error("byte 0xff at 3")), True),
        (failed_here(1007, CompressionError("message does not inflate")), True),
        (failed_here(1009, MessageTooLarge(12, 10)), False),
        (failed_here(1008, InvalidFrame("message in more than 9 fragments", code=1008)), False),
        (failed_here(1011, InvalidFrame("internal error", code=1011)), False),
    ],
    ids=repr,
)
def test_a_failure_by_this_end_is_final_if_it_would_happen_again(failure: ConnectionClosed, retried: bool) -> None:
    assert should_retry(failure) == retried


def test_a_lost_transport_is_retried_whatever_the_cause() -> None:
    lost = ConnectionClosed(1006, by="transport")
    lost.__cause__ = Timeout("ping", 10)
    assert should_retry(lost)


@pytest.mark.parametrize(
    ("status", "retried"),
    [
        (400, False),
        (401, False),
        (403, False),
        (404, False),
        (408, True),
        (410, False),
        (425, True),
        (426, False),
        (429, True),
        (499, False),
        (500, True),
        (502, True),
        (503, True),
        (504, True),
        (599, True),
        (200, True),
        (None, True),
    ],
)
def test_http_statuses(status: int | None, retried: bool) -> None:
    assert should_retry(HandshakeFailed("no", status=status)) == retried


@pytest.mark.parametrize("status", [401, 403, 407])
def test_authentication_is_final(status: int) -> None:
    assert not should_retry(AuthenticationFailed("no", status=status))


def test_a_login_that_a_socks_proxy_refuses_is_final() -> None:
    assert not should_retry(AuthenticationFailed("no"))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionFailed("refused"),
        Timeout("opening handshake", 5),
        Io("no descriptors", errno=24),
        ConnectionRefusedError(),
        ConnectionResetError(),
        TimeoutError(),
        socket.gaierror(-3, "temporary failure"),
        OSError(113, "no route"),
        asyncio.IncompleteReadError(b"", 1),
        Tls("alert", reason="SSLV3_ALERT_HANDSHAKE_FAILURE"),
        Tls("alert", reason="TLSV13_ALERT_CERTIFICATE_REQUIRED"),
        Tls("plain HTTP", reason="WRONG_VERSION_NUMBER"),
        ssl.SSLError(1, "alert"),
        CompressionError("an answer that breaks RFC 7692"),
        InvalidFrame("reserved bits"),
        Utf8Error("byte 0xff at 3"),
    ],
    ids=repr,
)
def test_network_errors_are_retried(error: BaseException) -> None:
    assert should_retry(error)


@pytest.mark.parametrize(
    "error",
    [
        Tls("certificate expired", certificate_rejected=True),
        ssl.SSLCertVerificationError("expired"),
        SubprotocolNegotiationFailed("none", ("a",), ("b",)),
        ReconnectTimeout("gave up", attempts=3),
        BackpressureTimeout(1, 1),
        BufferFull(1, 1),
        TypeError("bug"),
        ValueError("bad url"),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_all_else_is_final(error: BaseException) -> None:
    assert not should_retry(error)


# What the application decides.

LOST = ConnectionClosed(1006, by="transport")
REFUSED = AuthenticationFailed("no", status=401)


def deciding(answer: object) -> ReconnectState:
    return ReconnectState(EXACT.with_decide(lambda error, attempt: answer))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("answer", "after_lost", "after_refused"),
    [
        (None, True, False),
        (True, True, True),
        (False, False, False),
        (0, 0.0, 0.0),
        (1, 1.0, 1.0),
        (2.5, 2.5, 2.5),
        (timedelta(minutes=1), 60.0, 60.0),
    ],
)
def test_the_application_overrules_the_default(answer: object, after_lost: object, after_refused: object) -> None:
    for error, expected in ((LOST, after_lost), (REFUSED, after_refused)):
        verdict = deciding(answer).decide(error)
        assert verdict == expected
        assert type(verdict) is type(expected)


def test_the_application_is_told_the_error_and_the_attempts() -> None:
    told: list[tuple[BaseException, int]] = []
    state = ReconnectState(EXACT.with_decide(lambda error, attempt: told.append((error, attempt))))
    state.decide(LOST)
    delays(state, 2)
    state.decide(REFUSED)
    assert told == [(LOST, 0), (REFUSED, 2)]


def test_the_application_is_not_asked_about_its_own_close() -> None:
    assert deciding(True).decide(ConnectionClosed(1000, by="local")) is False
    assert deciding(True).decide(failed_here(1009, MessageTooLarge(12, 10))) is True


def test_exactly_so_many_seconds_and_the_schedule_goes_on() -> None:
    state = ReconnectState(ReconnectConfig(jitter=1, max_attempts=3))
    assert state.next_delay(exactly=0.0) == 0
    assert state.next_delay(100, exactly=7.0) == 7
    state = ReconnectState(EXACT.with_max_attempts(3))
    state.next_delay(exactly=60.0)
    assert delays(state, 2) == pytest.approx([0.15, 0.225])
    assert state.next_delay(exactly=60.0) is None


@pytest.mark.parametrize("answer", [-1, math.nan, math.inf, timedelta(seconds=-1)])
def test_seconds_are_checked(answer: object) -> None:
    with pytest.raises(ValueError, match=r"ReconnectConfig\.decide returned"):
        deciding(answer).decide(LOST)


@pytest.mark.parametrize("answer", ["yes", [], b""])
def test_the_type_is_checked(answer: object) -> None:
    with pytest.raises(TypeError, match=r"ReconnectConfig\.decide returned"):
        deciding(answer).decide(LOST)


def test_what_the_application_raises_is_raised() -> None:
    def decide(error: BaseException, attempt: int) -> bool:
        raise LookupError(attempt)

    with pytest.raises(LookupError):
        ReconnectState(EXACT.with_decide(decide)).decide(LOST)


async def coroutine_function(error: BaseException, attempt: int) -> bool:
    return True


@pytest.mark.parametrize("decide", [coroutine_function, 5, "no"])
def test_decide_is_a_plain_function(decide: object) -> None:
    with pytest.raises(TypeError, match=r"ReconnectConfig\.decide = .*plain function of \(error, attempt\)"):
        ReconnectConfig(decide=decide)  # type: ignore[arg-type]


# Retry-After.

NOW = datetime(2026, 7, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("Wed, 01 Jul 2026 12:01:30 GMT", 90),
        ("Wed, 01 Jul 2026 12:01:30 -0000", 90),
        ("Wednesday, 01-Jul-26 12:00:10 GMT", 10),
        ("Wed, 01 Jul 2026 11:00:00 GMT", 0),
        ("Wed, 01 Jul 2099 12:00:00 GMT", MAX_RETRY_AFTER),
        ("9" * 500, MAX_RETRY_AFTER),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("", None),
        ("Mon, 01 Jan 99999999999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2026 00:00:00 +99999999999999999999", None),
        ("Mon, 01 Jan 2026 99999999999:00:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -2359", MAX_RETRY_AFTER),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
        ("\udcff", None),
    ],
)
def test_retry_after_values(value: str, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds
    error = HandshakeFailed("busy", status=503, headers={"retry-AFTER": value})
    assert retry_after(error, NOW.astimezone(timezone(timedelta(hours=5)))) == seconds


DATE = st.tuples(st.integers(), st.sampled_from(["Jan", "Feb", "x"]), st.integers(), st.integers(), st.integers())


@given(st.text() | DATE.map(lambda parts: "Mon, {:02d} {} {:04d} 00:00:{:02d} {:+05d}".format(*parts)))
def test_any_text_gives_seconds_up_to_a_day_or_nothing(value: str) -> None:
    seconds = parse_retry_after(value)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


def test_retry_after_of_other_errors() -> None:
    assert retry_after(None) is None
    assert retry_after(ConnectionFailed("refused")) is None
    assert retry_after(HandshakeFailed("busy", status=503)) is None
    assert retry_after(HandshakeFailed("busy", status=503, headers={"Server": "x"})) is None
    assert retry_after(HandshakeFailed("busy", status=503, headers=HeaderMap({"Retry-After": "3"}))) == 3
    past = HandshakeFailed("busy", status=503, headers={"Retry-After": "Wed, 01 Jul 2020 12:00:00 GMT"})
    assert retry_after(past) == 0
