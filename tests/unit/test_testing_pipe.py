"""The pipe behind `pair`: its ends do what those of a TCP connection do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fabric.testing.pipe import CAPACITY, PipeTransport, connected_pair
from support.serving import turns


class Recorder(asyncio.Protocol):
    """Notes what it is told."""

    def __init__(self, *, stays: bool = False) -> None:
        self.told: list[str] = []
        self.data = b""
        self.transport: PipeTransport = None  # type: ignore[assignment]
        self.error: Exception | None = None
        self._stays = stays

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.told.append("eof")
        return self._stays

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        self.error = exc

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")


class Buffered(asyncio.BufferedProtocol):
    """Reads into a buffer of 4 bytes."""

    def __init__(self) -> None:
        self.buffer = bytearray(4)
        self.reads: list[bytes] = []

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.reads.append(bytes(self.buffer[:nbytes]))


def joined(*, stays: bool = False) -> tuple[Recorder, Recorder]:
    ours, theirs = connected_pair(asyncio.get_running_loop())
    one, two = Recorder(stays=stays), Recorder(stays=stays)
    ours.open(one)
    theirs.open(two)
    return one, two


async def test_bytes_arrive_in_a_later_turn() -> None:
    one, two = joined()
    one.transport.write(b"ab")
    one.transport.write(b"c")
    assert two.data == b""
    await turns()
    assert two.data == b"abc"
    assert one.transport.get_extra_info("peername") == two.transport.get_extra_info("sockname")
    assert two.transport.get_extra_info("peername") == one.transport.get_extra_info("sockname")


async def test_a_buffered_protocol_gets_what_fits() -> None:
    one, two = joined()
    reader = Buffered()
    two.transport.set_protocol(reader)
    assert two.transport.get_protocol() is reader
    one.transport.write(b"0123456789")
    await turns()
    assert reader.reads == [b"0123", b"4567", b"89"]


async def test_a_reader_that_pauses_holds_the_writer_up() -> None:
    one, two = joined()
    two.transport.pause_reading()
    one.transport.write(bytes(CAPACITY))
    assert one.told == []
    one.transport.write(b"more")
    await turns()
    assert (one.told, two.data, one.transport.get_write_buffer_size()) == (["pause"], b"", 4)
    two.transport.resume_reading()
    await turns()
    assert (one.told, len(two.data), one.transport.get_write_buffer_size()) == (["pause", "resume"], CAPACITY + 4, 0)


async def test_close_delivers_first() -> None:
    one, two = joined()
    two.transport.pause_reading()
    one.transport.write(bytes(CAPACITY + 4))
    one.transport.close()
    one.transport.write(b"too late")
    await turns()
    assert one.transport.is_closing()
    assert "lost" not in one.told
    two.transport.resume_reading()
    await turns()
    assert len(two.data) == CAPACITY + 4
    assert (one.told[-1], two.told, two.error) == ("lost", ["eof", "lost"], None)


async def test_half_closing() -> None:
    one, two = joined(stays=True)
    one.transport.write(b"all")
    one.transport.write_eof()
    with pytest.raises(RuntimeError, match="write_eof"):
        one.transport.write(b"more")
    await turns()
    assert (two.data, two.told) == (b"all", ["eof"])
    two.transport.write(b"answer")
    two.transport.close()
    await turns()
    assert (one.data, one.told, two.told) == (b"answer", ["eof"], ["eof", "lost"])
    one.transport.close()
    await turns()
    assert one.told == ["eof", "lost"]


async def test_a_reset_overtakes_what_is_on_its_way() -> None:
    one, two = joined()
    one.transport.write(b"never seen")
    one.transport.abort()
    await turns()
    assert (two.data, two.told, one.told) == (b"", ["lost"], ["lost"])
    assert isinstance(two.error, ConnectionResetError)
    assert one.error is None


async def test_a_reset_is_noticed_by_a_writer_that_does_not_read() -> None:
    one, two = joined()
    one.transport.pause_reading()
    two.transport.abort()
    await turns()
    assert one.told == []
    one.transport.write(b"x")
    await turns()
    assert isinstance(one.error, ConnectionResetError)
