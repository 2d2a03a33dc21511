"""fabric_ext.frames: whatever the cut, the same frames; every fault at the first bytes that show it.

Judges are the tests' own encoder, `Frame.parse`, which reads one whole frame, and the parser of `websockets`.
"""

from __future__ import annotations

import itertools
import struct
import sys
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fabric_ext.frames import Decoder, Fault
from support.decoded import MOST_HELD, Found, decode_pieces
from support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, encode
from support.other_readers import check_by_frame_parse, check_by_websockets

LIMIT = 1000
MAX_FRAGMENTS = 20
SIZES = [0, 1, 2, 3, 4, 5, 63, 64, 65, 124, 125, 126, 127, 255, 256, 999, 1000]


def make(*, masked: bool = True, limit: int = LIMIT, fragments: int = MAX_FRAGMENTS, **options: Any) -> Decoder:
    return Decoder(masked=masked, max_message_size=limit, max_fragments=fragments, **options)


def counted(size: int) -> bytes:
    """Bytes of which each says where it stands."""
    return bytes(itertools.islice(itertools.cycle(range(251)), size))


def cuts(data: bytes) -> list[list[bytes]]:
    """`data` in two pieces, in every way, and byte by byte."""
    return [[data[:at], data[at:]] for at in range(len(data) + 1)] + [[bytes([byte]) for byte in data]]


# --- whole frames, and parts of them -----------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [*SIZES, 65_535, 65_536, 70_000])
def test_a_frame_that_is_all_there_is_one_event(size: int, masked: bool) -> None:
    decoder = make(masked=masked, limit=1 << 20)
    for opcode in (TEXT, BINARY):
        events = decoder.read(encode(opcode, counted(size), mask=masked))
        assert events == [(opcode, counted(size), True, False, True, True)]
    assert not decoder.in_message
    assert decoder.held_bytes == 0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [0, 1, 4, 124, 125])
def test_a_control_frame_is_whole_however_it_comes(size: int, masked: bool) -> None:
    for opcode in (CLOSE, PING, PONG):
        for pieces in cuts(encode(opcode, counted(size), mask=masked)):
            decoder = make(masked=masked)
            events = [event for piece in pieces for event in decoder.read(piece)]
            assert events == [(opcode, counted(size))]


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 9, 125, 126, 135, 65_536])
@pytest.mark.parametrize("masked", [False, True])
def test_a_frame_cut_in_three_anywhere(size: int, masked: bool) -> None:
    data = encode(BINARY, counted(size), mask=masked)
    head = len(data) - size
    near = sorted({*range(head + 10), *range(len(data) - 9, len(data) + 1)} & set(range(len(data) + 1)))
    for first, second in itertools.combinations_with_replacement(near, 2):
        decoder = make(masked=masked, limit=1 << 20)
        decoded = decode_pieces(decoder, [data[:first], data[first:second], data[second:]])
        assert decoded.frames == [Found(BINARY, counted(size), True, False)]
        assert decoded.begun is None


def test_a_part_is_there_as_soon_as_its_bytes() -> None:
    payload = counted(600)
    data = encode(TEXT, payload)
    head = len(data) - len(payload)
    decoder = make()
    assert decoder.read(data[: head - 1]) == []
    assert decoder.held_bytes == head - 1
    assert decoder.read(data[head - 1 : head]) == [(TEXT, b"", True, False, True, False)], "it begins"
    assert decoder.in_message
    assert decoder.read(data[head : head + 7]) == [(TEXT, payload[:7], True, False, False, False)]
    assert decoder.read(data[head + 7 : -1]) == [(TEXT, payload[7:-1], True, False, False, False)]
    assert decoder.read(data[-1:]) == [(TEXT, payload[-1:], True, False, False, True)]
    assert not decoder.in_message
    assert (decoder.opcode, decoder.fin, decoder.length) == (TEXT, True, 600)


def test_nothing_is_reported_where_nothing_has_come() -> None:
    decoder = make()
    for state in (b"", encode(BINARY, b"abc")[:3], encode(BINARY, b"abc")[3:7]):
        decoder.read(state)
        assert decoder.read(b"") == []


def test_the_frames_of_one_read_and_the_beginning_of_the_next() -> None:
    decoder = make()
    stream = encode(TEXT, "a") + encode(PING, "b") + encode(BINARY, b"c", fin=False) + encode(CONTINUATION, b"defg")
    assert decoder.read(stream[:-2]) == [
        (TEXT, b"a", True, False, True, True),
        (PING, b"b"),
        (BINARY, b"c", False, False, True, True),
        (CONTINUATION, b"de", True, False, True, False),
    ]
    assert decoder.read(stream[-2:] + encode(PONG)) == [(CONTINUATION, b"fg", True, False, False, True), (PONG, b"")]


def test_a_message_is_open_between_its_frames() -> None:
    decoder = make()
    decoder.read(encode(TEXT, "a", fin=False))
    assert decoder.in_message
    decoder.read(encode(PING))
    assert decoder.in_message
    decoder.read(encode(CONTINUATION, "b", fin=False))
    assert decoder.in_message
    decoder.read(encode(CONTINUATION))
    assert not decoder.in_message


def test_no_payload_of_data_is_kept() -> None:
    size = 10_000_000
    decoder = make(limit=size)
    decoder.read(encode(BINARY, b"", length=size))
    block = bytes(100_000)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(size // len(block) - 1):
            decoder.read(block)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1000
    assert peak - before < 3 * len(block)  # the copy that is read from, and the part
    assert decoder.held_bytes == 0
    assert decoder.in_message


def test_most_that_is_held_is_a_control_frame() -> None:
    decoder = make()
    data = encode(PING, counted(125))
    for at, byte in enumerate(data[:-1]):
        assert decoder.read(bytes([byte])) == []
        assert decoder.held_bytes == at + 1 <= MOST_HELD
    assert decoder.read(data[-1:]) == [(PING, counted(125))]
    assert decoder.held_bytes == 0


# --- limits, at the header ---------------------------------------------------------------------------------


def header(opcode: int, length: int, **options: Any) -> bytes:
    """The header of a frame whose payload does not come."""
    form = 0 if length < 126 else 2 if length < 65536 else 8
    return encode(opcode, b"", length=length, form=form, **options)


def refused(decoder: Decoder, data: bytes) -> Fault:
    """`data` is refused, and not before its last byte."""
    decoded = decode_pieces(decoder, [data[:-1]])
    assert decoded.fault is None
    (fault,) = decoder.read(data[-1:])
    assert isinstance(fault, Fault)
    return fault


@pytest.mark.parametrize("length", [1001, 65_535, 65_536, 1 << 32, (1 << 63) - 1])
def test_a_frame_over_the_limit_is_refused_at_its_header(length: int) -> None:
    decoder = make()
    assert refused(decoder, header(BINARY, length)) is Fault.TOO_LARGE
    assert decoder.oversize == length


@pytest.mark.parametrize("before", [0, 1, 500, 999, 1000])
def test_the_limit_is_the_messages(before: int) -> None:
    for more in (1000 - before, 1001 - before):
        decoder = make()
        decoder.read(encode(TEXT, bytes(before), fin=False))
        decoder.read(encode(PING, bytes(125)))  # control frames are not part of it
        if before + more <= 1000:
            assert decoder.read(header(CONTINUATION, more)) != []
            assert decoder.fault == Fault.NO_FAULT
        else:
            assert refused(decoder, header(CONTINUATION, more)) is Fault.TOO_LARGE
            assert decoder.oversize == 1001


def test_the_limit_begins_anew_with_each_message() -> None:
    decoder = make()
    for _ in range(3):
        decoder.read(encode(BINARY, bytes(600), fin=False))
        decoder.read(encode(CONTINUATION, bytes(400)))
    assert decoder.fault == Fault.NO_FAULT


def test_lengths_that_would_overflow() -> None:
    largest = (1 << 62) if sys.maxsize > 1 << 32 else (1 << 30)
    decoder = make(limit=largest)
    decoder.read(encode(BINARY, b"x", fin=False))
    assert refused(decoder, header(CONTINUATION, (1 << 63) - 1)) is Fault.TOO_LARGE
    assert decoder.oversize == 1 << 63
    decoder = make(limit=largest)
    assert decoder.read(header(BINARY, largest)) == [(BINARY, b"", True, False, True, False)]
    with pytest.raises(ValueError, match=str(largest + 1)):
        make(limit=largest + 1)


def test_frames_are_counted_even_when_empty() -> None:
    decoder = make(fragments=10)
    for _ in range(2):
        decoder.read(encode(BINARY, fin=False))
        for _ in range(8):
            decoder.read(encode(CONTINUATION, fin=False))
            decoder.read(encode(PING))
        assert decoder.read(encode(CONTINUATION)) == [(CONTINUATION, b"", True, False, True, True)]
    decoder.read(encode(BINARY, fin=False))
    for _ in range(9):
        decoder.read(encode(CONTINUATION, fin=False))
    assert refused(decoder, encode(CONTINUATION)) is Fault.TOO_MANY_FRAGMENTS


def test_a_compressed_message_may_have_grown_a_little() -> None:
    """RFC 1951: stored blocks cost 5 bytes in 16 KB, a fixed code an eighth at worst. The true limit is inflate's."""
    decoder = make(compressing=True)
    assert decoder.max_compressed == 1000 + 125 + 1024
    assert refused(decoder, header(BINARY, decoder.max_compressed + 1, rsv=4)) is Fault.TOO_LARGE
    decoder = make(compressing=True)
    assert decoder.read(header(BINARY, decoder.max_compressed, rsv=4)) != []
    decoder = make(compressing=True)
    assert refused(decoder, header(BINARY, 1001)) is Fault.TOO_LARGE, "this one is not compressed"


def test_a_frame_may_have_less_than_a_message() -> None:
    for size in (10, 500):
        decoder = make(max_frame_size=size)
        assert decoder.max_frame_size == size
        decoder.read(encode(TEXT, counted(size), fin=False))
        decoder.read(encode(CONTINUATION, counted(size), fin=False))
        assert refused(decoder, header(CONTINUATION, size + 1)) is Fault.TOO_LARGE
        decoder = make(max_frame_size=size)
        assert refused(decoder, header(BINARY, size + 1)) is Fault.TOO_LARGE
    assert make().max_frame_size == make(max_frame_size=LIMIT + 1).max_frame_size == LIMIT


@pytest.mark.parametrize(
    ("options", "named"),
    [({"limit": 0}, "max_message_size is 0"), ({"limit": -1}, "max_message_size is -1"), ({"fragments": 0}, "is 0")],
)
def test_limits_below_one(options: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make(**options)  # type: ignore[arg-type]


# --- faults ------------------------------------------------------------------------------------------------

OTHER_OPCODES = [3, 4, 5, 6, 7, 11, 12, 13, 14, 15]
FAULTS = [
    *((encode(opcode)[:2], Fault.BAD_OPCODE) for opcode in OTHER_OPCODES),
    *((encode(opcode, rsv=rsv)[:2], Fault.BAD_RSV) for opcode in (TEXT, BINARY, PING, CLOSE) for rsv in range(1, 8)),
    *((encode(opcode, fin=False)[:2], Fault.CONTROL_FRAGMENTED) for opcode in (CLOSE, PING, PONG)),
    *((encode(opcode, bytes(size))[:2], Fault.CONTROL_TOO_LONG) for opcode in (CLOSE, PING) for size in (126, 65536)),
    (encode(TEXT, mask=False)[:2], Fault.NOT_MASKED),
    (encode(PONG, mask=False)[:2], Fault.NOT_MASKED),
    (encode(CONTINUATION)[:6], Fault.UNEXPECTED_CONTINUATION),
    (encode(CONTINUATION, fin=False)[:6], Fault.UNEXPECTED_CONTINUATION),
    (header(CONTINUATION, 70_000), Fault.UNEXPECTED_CONTINUATION),
    *((encode(BINARY, bytes(n), form=2)[:8], Fault.LONG_LENGTH) for n in (0, 1, 125)),
    *((encode(BINARY, bytes(n), form=8)[:14], Fault.LONG_LENGTH) for n in (0, 125, 126, 65_535)),
    (encode(BINARY, length=1 << 63), Fault.LONG_LENGTH),
    (encode(BINARY, length=(1 << 64) - 1), Fault.LONG_LENGTH),
]


@pytest.mark.parametrize(("data", "fault"), FAULTS)
def test_each_fault_at_the_first_bytes_that_show_it(data: bytes, fault: Fault) -> None:
    good = encode(TEXT, "good") + encode(PING, "ping")
    found = [Found(TEXT, b"good", True, False), Found(PING, b"ping", True, False)]
    for before, frames in ((b"", []), (good, found)):
        for pieces in cuts(before + data):
            decoded = decode_pieces(make(), pieces)
            assert (decoded.frames, decoded.fault) == (frames, fault)
    # A fault in the first two bytes is seen when they are there, any other when the header is.
    assert refused(make(), data) is fault


def test_a_new_message_inside_an_unfinished_one() -> None:
    for first, second in itertools.product((TEXT, BINARY), repeat=2):
        decoder = make()
        decoder.read(encode(first, "a", fin=False))
        assert refused(decoder, encode(second)) is Fault.EXPECTED_CONTINUATION


def test_a_server_does_not_mask() -> None:
    for opcode in (TEXT, PING, CLOSE):
        assert refused(make(masked=False), encode(opcode)[:2]) is Fault.MASKED


def test_nothing_is_read_after_a_fault() -> None:
    decoder = make()
    assert decoder.read(encode(TEXT, "a") + encode(3) + encode(TEXT, "b")) == [
        (TEXT, b"a", True, False, True, True),
        Fault.BAD_OPCODE,
    ]
    for data in (b"", b"x", encode(TEXT, "c")):
        assert decoder.read(data) == [Fault.BAD_OPCODE]
    assert decoder.fault == Fault.BAD_OPCODE


# --- compression's bit (RFC 7692 §6) -----------------------------------------------------------------------


def test_rsv1_marks_a_compressed_message_on_its_first_frame() -> None:
    decoder = make(compressing=True)
    stream = [
        encode(TEXT, "a", rsv=4),
        encode(BINARY, b"b", rsv=4, fin=False),
        encode(PING, "ping"),
        encode(CONTINUATION, b"c", fin=False),
        encode(CONTINUATION, b"d"),
        encode(TEXT, "plain", fin=False),
        encode(CONTINUATION, "too"),
    ]
    assert decode_pieces(decoder, stream).frames == [
        Found(TEXT, b"a", True, True),
        Found(BINARY, b"b", False, True),
        Found(PING, b"ping", True, False),
        Found(CONTINUATION, b"c", False, True),
        Found(CONTINUATION, b"d", True, True),
        Found(TEXT, b"plain", False, False),
        Found(CONTINUATION, b"too", True, False),
    ]


@pytest.mark.parametrize("rsv", range(1, 8))
@pytest.mark.parametrize("opcode", [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG])
def test_no_other_reserved_bit_is_allowed(opcode: int, rsv: int) -> None:
    decoder = make(compressing=True)
    if opcode == CONTINUATION:
        decoder.read(encode(TEXT, rsv=4, fin=False))
    data = encode(opcode, b"\x03\xe8", rsv=rsv)
    if opcode in (TEXT, BINARY) and rsv == 4:
        assert decode_pieces(decoder, [data]).frames == [Found(opcode, b"\x03\xe8", True, True)]
    else:
        assert refused(decoder, data[:2]) is Fault.BAD_RSV


# --- against other readers ---------------------------------------------------------------------------------

payloads = st.binary(max_size=40) | st.integers(0, LIMIT + 2).map(bytes)


def streams(*, masked: bool = True) -> st.SearchStrategy[list[bytes]]:
    """Frames that are all there, right and wrong ones; lengths that are a lie are over the limit."""
    mask = st.sampled_from([masked] * 9 + [not masked])
    rsv = st.sampled_from([0, 0, 0, 0, 0, 1, 2, 4, 7])
    data = st.sampled_from([TEXT, BINARY, CONTINUATION, CONTINUATION, 3])
    control = st.sampled_from([PING, PONG, CLOSE, 11])
    form = st.none() | st.just(8)  # of a control frame it would be a size over the limit
    any_frame = st.builds(encode, data, payloads, fin=st.booleans(), rsv=rsv, mask=mask, form=form) | st.builds(
        encode, control, payloads, fin=st.booleans(), rsv=rsv, mask=mask
    )
    too_large = st.builds(
        encode, st.just(BINARY), length=st.integers(LIMIT + 1, (1 << 64) - 1), form=st.just(8), mask=mask
    )
    good = st.builds(encode, st.sampled_from([TEXT, BINARY]), payloads, mask=st.just(masked)) | st.builds(
        encode, st.sampled_from([PING, PONG]), st.binary(max_size=125), mask=st.just(masked)
    )
    return st.lists(good | any_frame | any_frame | too_large, max_size=8)


@given(streams())
@example([encode(BINARY, bytes(LIMIT)), encode(BINARY, bytes(LIMIT + 1))])
def test_against_frame_parse(frames: list[bytes]) -> None:
    decoder = make(compressing=True)
    data = b"".join(frames)
    check_by_frame_parse(decoder, decode_pieces(decoder, [data]), data)


@given(st.data())
@pytest.mark.parametrize("server", [False, True])
def test_against_websockets(server: bool, data: st.DataObject) -> None:
    stream = b"".join(data.draw(streams(masked=server)))
    decoder = make(masked=server)
    check_by_websockets(decoder, decode_pieces(decoder, [stream]), stream, whole=True)


@given(streams(), st.binary(max_size=20), st.booleans())
def test_the_cut_makes_no_difference(frames: list[bytes], garbage: bytes, compressing: bool) -> None:
    data = (b"".join(frames) + garbage)[:150]
    whole = decode_pieces(make(compressing=compressing), [data])
    for pieces in cuts(data):
        assert decode_pieces(make(compressing=compressing), pieces) == whole


@given(st.binary(max_size=200))
@example(struct.pack("!BBQ", 0x82, 0xFF, 1 << 63) + bytes(4))
def test_any_bytes(data: bytes) -> None:
    whole = decode_pieces(make(), [data])
    assert decode_pieces(make(), [bytes([byte]) for byte in data]) == whole
