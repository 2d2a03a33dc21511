"""A frame codec of the tests' own: a mistake in fabric's does not judge itself. Writes invalid frames too."""

from __future__ import annotations

import os
from dataclasses import dataclass

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


@dataclass(frozen=True)
class Wire:
    """One frame as it stood on the wire, its payload unmasked."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0
    masked: bool = False

    @property
    def close_code(self) -> int | None:
        """The code of a close frame; None without a body."""
        return int.from_bytes(self.payload[:2], "big") if self.payload else None

    @property
    def close_reason(self) -> str:
        return self.payload[2:].decode()


def xor(data: bytes, key: bytes) -> bytes:
    if not data:
        return b""
    whole = (key * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(whole, "big")).to_bytes(len(data), "big")


def encode(
    opcode: int,
    payload: bytes | str = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bool = True,
    length: int | None = None,
    form: int | None = None,
    key: bytes | None = None,
) -> bytes:
    """A frame, right or wrong.

    Args:
        rsv: the three reserved bits, 4 is RSV1.
        length: what the header says instead of the truth.
        form: bytes the length takes after the second byte, 0, 2 or 8, instead of as few as possible.
        key: 4 bytes, instead of random ones.
    """
    data = payload.encode() if isinstance(payload, str) else bytes(payload)
    size = len(data) if length is None else length
    if form is None:
        form = 0 if size < 126 else 2 if size < 65536 else 8
    first = (fin << 7) | (rsv << 4) | opcode
    flag = {0: size, 2: 126, 8: 127}[form]
    head = bytes((first, (mask << 7) | flag)) + (size.to_bytes(form, "big") if form else b"")
    if not mask:
        return head + data
    key = key or os.urandom(4)
    return head + key + xor(data, key)


def close_frame(code: int | None = 1000, reason: bytes | str = b"", *, mask: bool = True) -> bytes:
    tail = reason.encode() if isinstance(reason, str) else reason
    return encode(CLOSE, b"" if code is None else code.to_bytes(2, "big") + tail, mask=mask)


def decode(data: bytes | bytearray) -> tuple[Wire, int] | None:
    """The first frame of `data` and its size, or None when it is incomplete."""
    if len(data) < 2:
        return None
    size, at = data[1] & 0x7F, 2
    if size >= 126:
        form = 2 if size == 126 else 8
        if len(data) < 2 + form:
            return None
        size, at = int.from_bytes(data[2 : 2 + form], "big"), 2 + form
    masked = bool(data[1] & 0x80)
    key = b""
    if masked:
        key, at = bytes(data[at : at + 4]), at + 4
    if len(data) < at + size:
        return None
    payload = bytes(data[at : at + size])
    if masked:
        payload = xor(payload, key)
    wire = Wire(data[0] & 15, payload, bool(data[0] & 0x80), (data[0] >> 4) & 7, masked)
    return wire, at + size


def decode_all(data: bytes | bytearray) -> list[Wire]:
    """The frames of `data`, which must end with a whole one."""
    frames = []
    while data:
        found = decode(data)
        assert found is not None, f"{len(data)} bytes of an unfinished frame: {bytes(data[:20])!r}"
        frames.append(found[0])
        data = data[found[1] :]
    return frames
