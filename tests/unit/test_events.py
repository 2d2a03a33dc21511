"""Lines of the log about connections: headers of frames found in any cut, and a log that fails harms nothing."""

from __future__ import annotations

import logging
import random
import uuid

import pytest

from fabric._connection.events import FrameLog, FrameReader, log_event
from support.frames import BINARY, CLOSE, CONTINUATION, PING, TEXT, encode


class Connection:
    id = uuid.UUID(int=7)


def test_headers_are_found_in_every_cut(rng: random.Random) -> None:
    sizes = (0, 1, 125, 126, 127, 65535, 65536, 70000)
    frames = [
        (rng.choice((TEXT, BINARY, CONTINUATION, PING)), rng.choice(sizes), rng.random() < 0.5) for _ in range(60)
    ]
    data = b"".join(encode(opcode, bytes(size), fin=fin, mask=rng.random() < 0.5) for opcode, size, fin in frames)
    reader, found, at = FrameReader(), [], 0
    while at < len(data):
        n = rng.choice((1, 2, 3, 7, 100, 65536))
        found += reader.feed(data[at : at + n])
        at += n
    assert found == [((fin << 7) | opcode, size) for opcode, size, fin in frames]


def test_a_length_that_nobody_can_send_is_only_a_number() -> None:
    assert FrameReader().feed(b"\x82\x7f" + b"\xff" * 8) == [(0x82, 2**64 - 1)]


def test_a_line_for_each_frame(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "some.server")
    log = FrameLog.of(logging.getLogger("some.server"), Connection())
    assert log is not None
    log.received(encode(TEXT, "secret", fin=False) + encode(CONTINUATION, "!"))
    log.sent(encode(BINARY, b"zip", rsv=4, mask=False) + encode(11, b""))
    log.sent(encode(CLOSE, b"\x03\xe8"))
    who = f"connection {Connection.id}: "
    assert [record.getMessage().removeprefix(who) for record in caplog.records] == [
        "received TEXT, 6 bytes, more follows",
        "received CONTINUATION, 1 bytes",
        "sent BINARY, 3 bytes, compressed",
        "sent opcode 11, 0 bytes",
        "sent CLOSE, 2 bytes",
    ]
    first = caplog.records[0]
    assert (first.name, first.levelname) == ("some.server.frames", "DEBUG")
    names = ("connection_id", "direction", "opcode", "size", "final")
    assert [getattr(first, name) for name in names] == [str(Connection.id), "received", "TEXT", 6, False]
    assert "secret" not in caplog.text


def test_above_debug_there_is_nothing_to_call() -> None:
    assert FrameLog.of(logging.getLogger("some.server"), Connection()) is None


def test_frames_can_be_left_out_of_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "some.server")
    caplog.set_level(logging.INFO, "some.server.frames")
    assert FrameLog.of(logging.getLogger("some.server"), Connection()) is None


def test_a_handler_of_the_log_that_raises_changes_nothing() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError(record.getMessage())

    logger, handler = logging.getLogger("some.broken"), Broken()
    logger.addHandler(handler)
    try:
        log_event(logger, logging.ERROR, "no %s", "harm", address="here")  # raises nothing
    finally:
        logger.removeHandler(handler)


def test_a_line_stands_where_it_was_written(caplog: pytest.LogCaptureFixture) -> None:
    log_event(logging.getLogger("some"), logging.WARNING, "here")
    assert caplog.records[0].filename == "test_events.py"
