"""Raw frames against a slow encoder and parser that follow RFC 6455 §5.2 bit by bit."""

from __future__ import annotations

import copy
import pickle
import random
from itertools import cycle
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fabric.error import InvalidFrame, MessageTooLarge
from fabric.message import Frame

OPCODES = [0, 1, 2, 8, 9, 10]
RESERVED = [opcode for opcode in range(16) if opcode not in OPCODES]
LENGTHS = [0, 1, 63, 64, 125, 126, 127, 255, 256, 65_535, 65_536, 70_000]


class Bits(NamedTuple):
    """What a frame's header says, in the order of the RFC's drawing."""

    fin: bool
    rsv1: bool
    rsv2: bool
    rsv3: bool
    opcode: int
    masked: bool
    payload: bytes


def slow_encode(frame: Frame | Bits, mask: bytes | None) -> bytes:
    first = f"{frame.fin:d}{frame.rsv1:d}{frame.rsv2:d}{frame.rsv3:d}{frame.opcode:04b}"
    length = len(frame.payload)
    if length <= 125:
        rest = f"{length:07b}"
    elif length <= 65_535:
        rest = f"{126:07b}{length:016b}"
    else:
        rest = f"{127:07b}{length:064b}"
    header = first + ("0" if mask is None else "1") + rest
    octets = bytes(int(header[i : i + 8], 2) for i in range(0, len(header), 8))
    if mask is None:
        return octets + frame.payload
    return octets + mask + bytes(a ^ b for a, b in zip(frame.payload, cycle(mask), strict=False))


def slow_parse(data: bytes) -> tuple[Bits, int] | None:
    """The first frame of `data`; AssertionError where the RFC forbids it."""
    bits = "".join(f"{octet:08b}" for octet in data[:14])
    if len(data) < 1:
        return None
    opcode = int(bits[4:8], 2)
    assert opcode in OPCODES
    assert opcode < 8 or bits[0] == "1"
    if len(data) < 2:
        return None
    length, head = int(bits[9:16], 2), 2
    assert opcode < 8 or length <= 125
    if length > 125:
        wide = 16 if length == 126 else 64
        head += wide // 8
        if len(data) < head:
            return None
        length = int(bits[16 : 16 + wide], 2)
        assert length > (125 if wide == 16 else 65_535)
        assert length < 2**63
    mask = bytes(4)
    if bits[8] == "1":
        mask = data[head : head + 4]
        head += 4
    if len(data) < head + length:
        return None
    payload = bytes(a ^ b for a, b in zip(data[head : head + length], cycle(mask), strict=False))
    flags = [bit == "1" for bit in bits[:4]]
    return Bits(*flags, opcode=opcode, masked=bits[8] == "1", payload=payload), head + length


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    opcode = draw(st.sampled_from(OPCODES))
    flags = {name: draw(st.booleans()) for name in ("rsv1", "rsv2", "rsv3", "masked")}
    payload = draw(st.binary(max_size=125 if opcode >= 8 else 300))
    return Frame(opcode, payload, fin=opcode >= 8 or draw(st.booleans()), **flags)


def bits_of(frame: Frame) -> Bits:
    return Bits(*(getattr(frame, name) for name in Bits._fields))


# --- encode and parse


@given(frames(), st.none() | st.binary(min_size=4, max_size=4))
def test_encodes_as_the_rfc_draws_it(frame: Frame, mask: bytes | None) -> None:
    if mask is None and frame.masked:
        mask = (encoded := frame.encode())[len(encoded) - len(frame.payload) - 4 :][:4]
        assert encoded == slow_encode(frame, mask)
    else:
        assert frame.encode(mask) == slow_encode(frame, mask)


@given(frames(), st.binary(max_size=20))
def test_parses_what_it_encodes(frame: Frame, following: bytes) -> None:
    encoded = frame.encode()
    assert Frame.parse(encoded + following) == (frame, len(encoded))


@given(st.binary(max_size=40))
@example(b"\x81\x7e\x00\x7d")
@example(b"\x81\x7f\x00\x00\x00\x00\x00\x00\xff\xff")
@example(b"\x81\x7f\x80\x00\x00\x00\x00\x00\x00\x00")
@example(b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff")
@example(b"\x88\x7e")
@example(b"\x09")
def test_parses_anything_as_the_oracle_does(data: bytes) -> None:
    try:
        expected = slow_parse(data)
    except AssertionError:
        with pytest.raises(InvalidFrame) as caught:
            Frame.parse(data)
        assert caught.value.code == 1002
        return
    parsed = Frame.parse(data)
    assert (parsed and (bits_of(parsed[0]), parsed[1])) == expected


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("mask", [None, b"\x12\x34\x56\x78"])
def test_every_form_of_the_length(rng: random.Random, length: int, mask: bytes | None) -> None:
    frame = Frame(2, rng.randbytes(length), masked=mask is not None)
    encoded = frame.encode(mask)
    assert encoded == slow_encode(frame, mask)
    assert Frame.parse(encoded) == (frame, len(encoded))


@pytest.mark.parametrize("length", [0, 5, 126, 65_536])
def test_an_incomplete_frame_is_none_at_every_cut(length: int) -> None:
    encoded = Frame(2, bytes(length), masked=True).encode(b"abcd")
    cuts = [*range(min(len(encoded), 40)), len(encoded) - 1]
    assert all(Frame.parse(encoded[:cut]) is None for cut in cuts)


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview])
def test_parses_any_buffer_and_keeps_none(convert) -> None:
    source = bytearray(Frame(1, b"hello").encode())
    parsed = Frame.parse(convert(source))
    source[:] = bytes(len(source))
    assert parsed == (Frame(1, b"hello"), 7)


def test_the_examples_of_rfc_6455_section_5_7() -> None:
    key = bytes.fromhex("37fa213d")
    assert Frame(1, b"Hello").encode() == bytes.fromhex("810548656c6c6f")
    assert Frame(1, b"Hello").encode(key) == bytes.fromhex("818537fa213d7f9f4d5158")
    assert Frame(1, b"Hel", fin=False).encode() == bytes.fromhex("010348656c")
    assert Frame(0, b"lo").encode() == bytes.fromhex("80026c6f")
    assert Frame(9, b"Hello").encode() == bytes.fromhex("890548656c6c6f")
    assert Frame(10, b"Hello").encode(key) == bytes.fromhex("8a8537fa213d7f9f4d5158")
    assert Frame(2, bytes(256)).encode()[:4] == bytes.fromhex("827e0100")
    assert Frame(2, bytes(65_536)).encode()[:10] == bytes.fromhex("827f0000000000010000")


def test_a_masked_frame_takes_a_new_key_each_time() -> None:
    frame = Frame(2, bytes(8), masked=True)
    assert len({frame.encode() for _ in range(8)}) == 8


# --- what is refused


@pytest.mark.parametrize("opcode", RESERVED)
def test_reserved_opcodes_from_the_first_byte(opcode: int) -> None:
    with pytest.raises(InvalidFrame, match=f"opcode {opcode} is reserved"):
        Frame.parse(bytes([0x80 | opcode]))
    with pytest.raises(InvalidFrame, match="reserved"):
        Frame(opcode)


@pytest.mark.parametrize("opcode", [8, 9, 10])
def test_control_frames_are_whole_and_short(opcode: int) -> None:
    with pytest.raises(InvalidFrame, match="fragmented"):
        Frame.parse(bytes([opcode]))
    with pytest.raises(InvalidFrame, match="longer than 125"):
        Frame.parse(bytes([0x80 | opcode, 126]))
    with pytest.raises(InvalidFrame, match="fragmented"):
        Frame(opcode, fin=False)
    with pytest.raises(InvalidFrame, match="longer than 125"):
        Frame(opcode, bytes(126))
    assert len(Frame(opcode, bytes(125)).payload) == 125


@pytest.mark.parametrize(
    "header",
    [
        "827e0000",
        "827e007d",
        "82fe007d",
        "827f0000000000000000",
        "827f000000000000ffff",
        "827f8000000000000000",
        "827fffffffffffffffff",
    ],
)
def test_lengths_that_are_not_minimal_or_negative(header: str) -> None:
    with pytest.raises(InvalidFrame, match="length"):
        Frame.parse(bytes.fromhex(header))


@pytest.mark.parametrize(
    ("header", "size"),
    [("820b", 11), ("827e0100", 256), ("827f0000000100000000", 2**32), ("827f7fffffffffffffff", 2**63 - 1)],
)
def test_too_large_is_told_by_the_header_alone(header: str, size: int) -> None:
    with pytest.raises(MessageTooLarge) as caught:
        Frame.parse(bytes.fromhex(header), max_size=10)
    assert (caught.value.size, caught.value.limit) == (size, 10)
    assert Frame.parse(bytes.fromhex(header), max_size=size) is None


def test_the_limit_itself_is_allowed() -> None:
    frame = Frame(2, bytes(10))
    assert Frame.parse(frame.encode(), max_size=10) == (frame, 12)


@pytest.mark.parametrize("mask", [b"", b"abc", b"abcde"])
def test_a_mask_has_four_bytes(mask: bytes) -> None:
    with pytest.raises(ValueError, match="mask"):
        Frame(1, b"x").encode(mask)


@pytest.mark.parametrize("opcode", [-1, 16, 1000])
def test_an_opcode_has_four_bits(opcode: int) -> None:
    with pytest.raises(ValueError, match="opcode"):
        Frame(opcode)


def test_a_payload_is_bytes_like() -> None:
    with pytest.raises(TypeError):
        Frame(1, "text")  # type: ignore[arg-type]
    assert Frame(1, memoryview(b"abc")[::-1]).payload == b"cba"


# --- value


@given(frames())
def test_survives_pickle_and_copy(frame: Frame) -> None:
    for twin in (pickle.loads(pickle.dumps(frame)), copy.deepcopy(frame)):
        assert twin == frame
        assert hash(twin) == hash(frame)


def test_equality_sees_every_field() -> None:
    fields = {"fin": True, "rsv1": False, "rsv2": False, "rsv3": False, "masked": False}
    frame = Frame(1, b"a", **fields)
    assert frame == Frame(1, b"a")
    assert frame != Frame(2, b"a")
    assert frame != Frame(1, b"b")
    for name, value in fields.items():
        assert frame != Frame(1, b"a", **{**fields, name: not value})
    assert frame != b"a"


def test_is_immutable() -> None:
    frame = Frame(1, b"a")
    for name in Bits._fields:
        with pytest.raises(AttributeError):
            setattr(frame, name, 1)


def test_repr_is_short() -> None:
    assert repr(Frame(0, b"x", fin=False)) == "<Frame CONTINUATION b'x', 1 bytes>"
    assert len(repr(Frame(2, bytes(100_000), masked=True))) < 250
