"""A server's connection that is fed bytes, and RFC 6455 as a slow model of what it has to make of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from fabric._connection.base import BaseConnection
from fabric.config import ServerConfig
from fabric.message import Message
from fabric.metrics import MetricsCollector
from fabric_ext.deflate import DeflateCodec
from support.fake_transport import FakeTransport
from support.frames import CLOSE, CONTINUATION, PING, PONG, TEXT, Wire, decode_all, xor

LIMIT = 1000  # bytes of a message
MAX_FRAGMENTS = 20

Received = tuple[str, str | bytes]


@dataclass
class Outcome:
    """What bytes have led to.

    Attributes:
        messages: kind and data of those that the application got.
        pongs: what the pings were answered with.
        codes: the close code sent; None for none. More than one where a model cannot tell.
    """

    messages: list[Received] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    codes: set[int | None] = field(default_factory=lambda: {None})


# The connection


async def receive(pieces: Iterable[bytes], *, compressed: bool = False) -> Outcome:
    """Feed a new connection `pieces`, one read each, and check that what it answers is well-formed."""
    outcome = Outcome()

    def take(_peer: BaseConnection, message: Message) -> None:
        if message.is_text:
            outcome.messages.append(("text", message.as_text()))
        else:
            outcome.messages.append(("binary", message.as_bytes()))

    peer = BaseConnection(
        asyncio.get_running_loop(),
        ServerConfig(max_message_size=LIMIT, max_fragments=MAX_FRAGMENTS),
        masking=False,
        metrics=MetricsCollector(),
        logger=logging.getLogger("fabric.fuzz"),
        on_message=take,
    )
    transport = FakeTransport()
    peer._open_session(transport, DeflateCodec() if compressed else None)  # type: ignore[arg-type]
    try:
        for piece in pieces:
            transport.feed(piece)
            await turns()
            if transport.closing or not transport.reading:
                break
    finally:
        transport.lose()
        await turns()
    answered = decode_all(transport.output)
    outcome.pongs = [wire.payload for wire in answered if wire.opcode == PONG]
    outcome.codes = {well_formed(answered)}
    assert peer.state.name == "CLOSED"
    assert peer.close_code is not None
    return outcome


async def turns() -> None:
    """Let what was called soon happen."""
    for _ in range(2):
        await asyncio.sleep(0)


def well_formed(answered: list[Wire]) -> int | None:
    """The close code of an answer that is pongs and at most one close frame, which is the last."""
    *before, last = answered or [Wire(PONG, b"")]
    for wire in [*before, last]:
        assert wire.fin, wire
        assert not wire.rsv, wire
        assert not wire.masked, wire
        assert len(wire.payload) <= 125, wire
    assert all(wire.opcode == PONG for wire in before), answered
    if last.opcode == PONG:
        return None
    assert last.opcode == CLOSE, last
    last.close_reason.encode()
    code = last.close_code
    assert code is None or 1000 <= code <= 1014 or 3000 <= code <= 4999, last
    return 1005 if code is None else code


# The model


class Model:
    """Reads all bytes at once. Without compression.

    A fault is seen as soon as the bytes that show it are there: the first two, the whole header, or a byte of text.
    """

    def __init__(self) -> None:
        self.outcome = Outcome()
        self._opcode = 0  # of the message being received; 0: none
        self._data = b""
        self._fragments = 0

    def read(self, data: bytes) -> Outcome:
        while (size := self._read_frame(data)) is not None:
            data = data[size:]
        return self.outcome

    def _read_frame(self, data: bytes) -> int | None:
        """Bytes of the first frame of `data`; None when there is nothing more to read."""
        if len(data) < 2:
            return None
        opcode, fin, rsv, masked = data[0] & 15, data[0] >> 7, data[0] >> 4 & 7, data[1] >> 7
        size, at = data[1] & 127, 2
        if rsv or not masked or 3 <= opcode <= 7 or opcode >= 11:  # §5.1, §5.2
            return self._fail(1002)
        if opcode >= 8 and (size > 125 or not fin):  # §5.5
            return self._fail(1002)
        wide = {126: 2, 127: 8}.get(size, 0)
        if len(data) < at + wide + 4:
            return None
        if wide:
            size, at = int.from_bytes(data[at : at + wide], "big"), at + wide
        faults = set()
        if size >= 1 << 63 or (wide and size < {2: 126, 8: 65536}[wide]):  # §5.2
            faults.add(1002)
        if opcode < 8:
            if (opcode == CONTINUATION) == (not self._opcode):  # §5.4
                faults.add(1002)
            if len(self._data) + size > LIMIT:
                faults.add(1009)
            if self._fragments == MAX_FRAGMENTS:
                faults.add(1008)
        if faults:
            return self._fail(*faults)
        key, at = data[at : at + 4], at + 4
        payload = xor(data[at : at + size], key)
        whole = len(payload) == size
        goes_on = False
        if opcode < 8:
            goes_on = self._read_data(opcode, payload, whole=whole, final=bool(fin) and whole)
        elif whole:
            goes_on = self._read_control(opcode, payload)
        return at + size if goes_on else None

    def _fail(self, *codes: int) -> None:
        """The connection is failed; where a frame breaks several rules, with the code of any."""
        self.outcome.codes = set(codes)

    def _read_control(self, opcode: int, payload: bytes) -> bool:
        if opcode == PING:
            self.outcome.pongs.append(payload)
        if opcode != CLOSE:
            return True
        code = int.from_bytes(payload[:2], "big") if payload else 1005
        self._fail(*close_faults(payload) or {code})
        return False

    def _read_data(self, opcode: int, payload: bytes, *, whole: bool, final: bool) -> bool:
        """Take a frame, or what is there of it; does anything follow?"""
        self._opcode = self._opcode or opcode
        self._data += payload
        self._fragments += 1
        if self._opcode == TEXT and not is_utf8(self._data, final=final):
            self._fail(1007)
            return False
        if final:
            if self._opcode == TEXT:
                self.outcome.messages.append(("text", self._data.decode()))
            else:
                self.outcome.messages.append(("binary", self._data))
            self._opcode, self._data, self._fragments = 0, b"", 0
        return whole


def close_faults(payload: bytes) -> set[int]:
    """What is wrong with the body of a close frame (§5.5.1, §7.4)."""
    faults: set[int] = set()
    code = int.from_bytes(payload[:2], "big") if payload else 1000
    if len(payload) == 1 or not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        faults.add(1002)
    if not is_utf8(payload[2:], final=True):
        faults.add(1007)
    return faults


def is_utf8(data: bytes, *, final: bool) -> bool:
    """Is `data` UTF-8, or (unless `final`) the beginning of it?"""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return not final and error.reason == "unexpected end of data"
    return True
