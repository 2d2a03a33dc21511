"""fabric_ext.assembler against bytes.decode and a list of pieces."""

from __future__ import annotations

import array
import sys
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_ext.assembler import DEFAULT_MAX_FRAGMENTS, Assembler, Verdict

if TYPE_CHECKING:
    import random

TEXT, BINARY, CONTINUATION = 1, 2, 0
LIMIT = 1000

# Bytes at which the decoder decides something: the ends of every range in Unicode's table 3-7.
EDGES = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE]
EDGES += [0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xF7, 0xF8, 0xFC, 0xFE, 0xFF]

edgy_bytes = st.lists(st.sampled_from(EDGES), max_size=12).map(bytes)
almost_text = st.builds(
    lambda head, middle, tail: head.encode() + middle + tail.encode(),
    st.text(max_size=8),
    edgy_bytes,
    st.text(max_size=8),
)


def valid_prefix(data: bytes) -> bool:
    """Whether more bytes could make `data` valid, by CPython's decoder."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


def is_valid(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- UTF-8, decided piece by piece --------------------------------------------------------------------------


class Utf8:
    """A text message that never ends: are all pieces so far the beginning of UTF-8, and would it be whole?"""

    def __init__(self) -> None:
        self.assembler = Assembler(1 << 20)
        self.seen: list[bytes] = []

    def push(self, data: bytes) -> bool:
        verdict = self.assembler.push(CONTINUATION if self.seen else TEXT, False, data)
        self.seen.append(data)
        assert verdict in (Verdict.MORE, Verdict.BAD_UTF8)
        return verdict is Verdict.MORE

    def complete(self) -> bool:
        """Would the message be accepted, in the same pieces, if the last one had ended it?"""
        again = Assembler(1 << 20)
        last = push_all(again, TEXT, self.seen or [b""])
        assert last in (Verdict.MESSAGE, Verdict.BAD_UTF8)
        return last is Verdict.MESSAGE


def test_all_pairs_of_bytes_between_edges() -> None:
    assembler = Assembler(LIMIT)
    for first in range(256):
        for second in range(256):
            for rest in (b"", b"\xbf\x80", b"\x80\xc0"):
                data = bytes((first, second)) + rest
                assembler.reset()
                assert (assembler.push(TEXT, False, data) is Verdict.MORE) == valid_prefix(data), data
                assembler.reset()
                assert (assembler.push(TEXT, True, data) is Verdict.MESSAGE) == is_valid(data), data


@given(almost_text)
def test_fails_at_the_first_impossible_byte(data: bytes) -> None:
    text = Utf8()
    for end in range(1, len(data) + 1):
        assert text.push(data[end - 1 : end]) == valid_prefix(data[:end]), data[:end]
        assert text.complete() == is_valid(data[:end]), data[:end]


@pytest.mark.parametrize(
    ("data", "valid_bytes"),
    [
        (b"\xc0\x80", 0),  # overlong NUL
        (b"\xc1\xbf", 0),
        (b"\xe0\x9f\xbf", 1),  # overlong U+07FF
        (b"\xf0\x8f\xbf\xbf", 1),  # overlong U+FFFF
        (b"\xed\xa0\x80", 1),  # U+D800
        (b"\xed\xbf\xbf", 1),  # U+DFFF
        (b"\xf4\x90\x80\x80", 1),  # U+110000
        (b"\xf5\x80\x80\x80", 0),
        (b"\xff", 0),
        (b"a\x80", 1),
        (b"\xe2\x82a", 2),
        ("κόσμε".encode() + b"\xed\xa0\x80edited", 11),  # as in Autobahn's 6.3
    ],
)
def test_where_each_kind_of_fault_shows(data: bytes, valid_bytes: int) -> None:
    text = Utf8()
    assert [text.push(data[i : i + 1]) for i in range(len(data))].index(False) == valid_bytes


@given(almost_text, st.integers(0, 70), st.integers(0, 40))
def test_position_among_ascii_does_not_matter(data: bytes, before: int, after: int) -> None:
    data = b"a" * before + data + b"z" * after
    text = Utf8()
    assert text.push(data) == valid_prefix(data)
    assert text.complete() == is_valid(data)


@given(almost_text)
def test_split_at_every_byte_gives_the_same_answer(data: bytes) -> None:
    for cut in range(len(data) + 1):
        text = Utf8()
        ok = text.push(data[:cut]) and text.push(data[cut:])
        assert (ok, text.complete()) == (valid_prefix(data), is_valid(data))


def test_bad_byte_at_every_place_of_a_long_text(rng: random.Random) -> None:
    for size in (1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 100, 200):
        for place in range(size):
            data = bytearray(rng.choices(range(128), k=size))
            data[place] = rng.choice((0x80, 0xC0, 0xFF))
            assert Assembler(LIMIT).push(TEXT, True, data) is Verdict.BAD_UTF8, (size, place)


def test_failure_stays_until_reset() -> None:
    text = Utf8()
    assert not text.push(b"\xff")
    assert not text.push(b"")
    assert not text.push(b"fine")
    assert not text.complete()
    text.assembler.reset()
    assert text.assembler.push(TEXT, True, b"fine") is Verdict.MESSAGE


def test_takes_any_contiguous_buffer_and_nothing_else() -> None:
    assembler = Assembler(LIMIT)
    for data in (b"a", bytearray(b"a"), memoryview(b"a"), array.array("I", [0x61616161])):
        assert assembler.push(TEXT, True, data) is Verdict.MESSAGE
        assert set(assembler.take()) == {"a"}
    with pytest.raises(TypeError):
        assembler.push(TEXT, True, "text")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        assembler.push(TEXT, True, memoryview(b"abcd")[::2])


# --- Assembler: whole messages ------------------------------------------------------------------------------


@st.composite
def pieces(draw: st.DrawFn, whole: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def push_all(assembler: Assembler, opcode: int, parts: list[bytes]) -> Verdict:
    """Push the parts of one message, and return the last verdict; those before it must be MORE."""
    for i, part in enumerate(parts):
        verdict = assembler.push(opcode if i == 0 else CONTINUATION, i == len(parts) - 1, part)
        if verdict is not Verdict.MORE:
            break
    return verdict


@given(st.data(), st.binary(max_size=600))
def test_binary_comes_back_whole(data: st.DataObject, whole: bytes) -> None:
    parts = data.draw(pieces(whole))
    assembler = Assembler(len(whole) or 1, len(parts))
    assert push_all(assembler, BINARY, parts) is Verdict.MESSAGE
    assert assembler.kind == BINARY
    assert assembler.size == len(whole)
    assert assembler.fragments == len(parts)
    message = assembler.take()
    assert message == whole
    assert type(message) is bytes
    assert hash(message) == hash(whole)


@given(st.data(), st.text(max_size=200))
def test_text_comes_back_whole(data: st.DataObject, text: str) -> None:
    parts = data.draw(pieces(text.encode()))
    assembler = Assembler(LIMIT)
    assert push_all(assembler, TEXT, parts) is Verdict.MESSAGE
    assert assembler.take() == text


def test_text_split_at_every_byte() -> None:
    whole = "aé€😀 κόσμε 𐍈z".encode()
    assembler = Assembler(len(whole))
    for cut in range(len(whole) + 1):
        for second in range(cut, len(whole) + 1):
            parts = [whole[:cut], whole[cut:second], whole[second:]]
            assert push_all(assembler, TEXT, parts) is Verdict.MESSAGE
            assert assembler.take() == whole.decode()
    assert push_all(assembler, TEXT, [whole[i : i + 1] for i in range(len(whole))]) is Verdict.MESSAGE
    assert assembler.take() == whole.decode()


@given(st.data(), almost_text)
def test_text_is_refused_in_the_frame_of_its_first_bad_byte(data: st.DataObject, whole: bytes) -> None:
    parts = data.draw(pieces(whole))
    assembler = Assembler(10_000)
    seen = b""
    for i, part in enumerate(parts):
        seen += part
        fin = i == len(parts) - 1
        verdict = assembler.push(CONTINUATION if i else TEXT, fin, part)
        if not (is_valid(seen) if fin else valid_prefix(seen)):
            assert verdict is Verdict.BAD_UTF8
            return
        assert verdict is (Verdict.MESSAGE if fin else Verdict.MORE)
    assert assembler.take() == whole.decode()


def test_character_cut_by_the_end_of_the_message() -> None:
    assembler = Assembler(LIMIT)
    assert assembler.push(TEXT, True, "é".encode()[:1]) is Verdict.BAD_UTF8
    assembler.reset()
    assert assembler.push(TEXT, False, "é".encode()[:1]) is Verdict.MORE
    assert assembler.push(CONTINUATION, True, b"") is Verdict.BAD_UTF8


def test_binary_is_not_validated_and_text_state_does_not_leak_into_it() -> None:
    assembler = Assembler(LIMIT)
    assert assembler.push(TEXT, False, b"\xe2\x82") is Verdict.MORE
    assembler.reset()
    assert assembler.push(BINARY, True, b"\xff\xfe\xed\xa0\x80") is Verdict.MESSAGE
    assert assembler.take() == b"\xff\xfe\xed\xa0\x80"
    assert assembler.push(TEXT, True, b"ok") is Verdict.MESSAGE
    assert assembler.take() == "ok"


@pytest.mark.parametrize(("opcode", "empty"), [(TEXT, ""), (BINARY, b"")])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_empty_messages(opcode: int, empty: object, frames: int) -> None:
    assembler = Assembler(1)
    assert push_all(assembler, opcode, [b""] * frames) is Verdict.MESSAGE
    assert assembler.take() == empty


# --- Assembler: order ---------------------------------------------------------------------------------------

frames = st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.booleans(), st.binary(max_size=5)), max_size=30)


@given(frames, st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=300)
def test_verdicts_follow_a_slow_model(
    sequence: list[tuple[int, bool, bytes]], max_size: int, max_fragments: int
) -> None:
    assembler = Assembler(max_size, max_fragments)
    kind = 0
    parts: list[bytes] = []
    for opcode, fin, part in sequence:
        whole = b"".join(parts) + part
        new_kind = opcode or kind
        if opcode == 0 and kind == 0:
            expected = Verdict.UNEXPECTED_CONTINUATION
        elif opcode and kind:
            expected = Verdict.EXPECTED_CONTINUATION
        elif len(whole) > max_size:
            expected = Verdict.TOO_LARGE
        elif len(parts) == max_fragments:
            expected = Verdict.TOO_MANY_FRAGMENTS
        elif new_kind == TEXT and not (is_valid(whole) if fin else valid_prefix(whole)):
            expected = Verdict.BAD_UTF8
        else:
            expected = Verdict.MESSAGE if fin else Verdict.MORE
        assert assembler.push(opcode, fin, part) is expected
        if expected is Verdict.MORE:
            kind = new_kind
            parts.append(part)
            assert assembler.active()
            assert (assembler.kind, assembler.size, assembler.fragments) == (kind, len(whole), len(parts))
        else:
            assert not assembler.active()
            if expected is Verdict.MESSAGE:
                assert assembler.take() == (whole.decode() if new_kind == TEXT else whole)
            else:
                assembler.reset()
            kind = 0
            parts = []
            assert (assembler.kind, assembler.size, assembler.fragments) == (0, 0, 0)
        assert assembler.capacity <= max_size


@pytest.mark.parametrize(
    ("opcode", "fin", "part", "verdict"),
    [
        (BINARY, True, b"", Verdict.EXPECTED_CONTINUATION),
        (CONTINUATION, False, b"x" * LIMIT, Verdict.TOO_LARGE),
        (CONTINUATION, False, b"\xff", Verdict.BAD_UTF8),
    ],
)
def test_refusal_is_final_frees_and_says_what_was_held(opcode: int, fin: bool, part: bytes, verdict: Verdict) -> None:
    assembler = Assembler(LIMIT)
    assert assembler.push(TEXT, False, b"seven b") is Verdict.MORE
    assert assembler.push(opcode, fin, part) is verdict
    assert assembler.capacity == 0
    assert (assembler.size, assembler.fragments, assembler.kind) == (7, 1, TEXT)
    assert not assembler.active()
    assert assembler.push(CONTINUATION, True, b"harmless") is verdict
    assert assembler.push(TEXT, True, b"harmless") is verdict
    with pytest.raises(RuntimeError):
        assembler.take()
    assembler.reset()
    assert assembler.push(TEXT, True, b"again") is Verdict.MESSAGE
    assert assembler.take() == "again"


def test_misuse_raises() -> None:
    assembler = Assembler(LIMIT)
    with pytest.raises(RuntimeError, match="no finished message"):
        assembler.take()
    for opcode in (3, 8, 9, 10, -1):
        with pytest.raises(ValueError, match=str(opcode)):
            assembler.push(opcode, True, b"")
    assert assembler.push(BINARY, True, b"kept") is Verdict.MESSAGE
    with pytest.raises(RuntimeError, match="take"):
        assembler.push(BINARY, True, b"next")
    assert assembler.take() == b"kept"
    with pytest.raises(RuntimeError):
        assembler.take()
    with pytest.raises(TypeError):
        assembler.push(TEXT, True, "text")  # type: ignore[arg-type]


@pytest.mark.parametrize("limits", [(0,), (-1,), (1, 0), (1, -5)])
def test_limits_below_one(limits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=str(limits[-1])):
        Assembler(*limits)


# --- Assembler: limits and memory ---------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("first", [0, 1, LIMIT - 1, LIMIT])
def test_the_limit_itself_fits_and_one_byte_more_does_not(opcode: int, first: int) -> None:
    assembler = Assembler(LIMIT)
    assert push_all(assembler, opcode, [b"a" * first, b"a" * (LIMIT - first)]) is Verdict.MESSAGE
    assert len(assembler.take()) == LIMIT
    assert push_all(assembler, opcode, [b"a" * first, b"a" * (LIMIT - first + 1)]) is Verdict.TOO_LARGE
    assembler.reset()
    # The first fragment fills the limit, and any further byte, however late, is refused.
    assert push_all(assembler, opcode, [b"a" * LIMIT, b"", b"", b"b"]) is Verdict.TOO_LARGE
    assert assembler.size == LIMIT


def test_largest_limits_do_not_overflow() -> None:
    assembler = Assembler(sys.maxsize, sys.maxsize)
    assert push_all(assembler, BINARY, [b"a" * 1000] * 10) is Verdict.MESSAGE
    assert len(assembler.take()) == 10_000
    with pytest.raises(OverflowError):
        Assembler(sys.maxsize + 1)


@pytest.mark.parametrize("part", [b"", b"a"])
def test_fragments_are_counted_even_when_empty(part: bytes) -> None:
    assembler = Assembler(LIMIT, 10)
    assert push_all(assembler, BINARY, [part] * 10) is Verdict.MESSAGE
    assembler.take()
    assert push_all(assembler, BINARY, [part] * 11) is Verdict.TOO_MANY_FRAGMENTS
    assert assembler.fragments == 10


def test_default_number_of_fragments_leaves_room_for_the_autobahn_suite() -> None:
    assert Assembler(1).max_fragments == DEFAULT_MAX_FRAGMENTS
    assert DEFAULT_MAX_FRAGMENTS >= 4 * 2**20 // 64  # cases 9.3.1 and 9.4.1


def test_buffer_grows_by_doubling_up_to_the_limit() -> None:
    limit = 1_000_000
    assembler = Assembler(limit)
    capacities = []
    assembler.push(BINARY, False, b"x")
    for _ in range(9_999):
        assembler.push(CONTINUATION, False, b"x" * 100)
        if not capacities or assembler.capacity != capacities[-1]:
            capacities.append(assembler.capacity)
    assert capacities[0] == 256
    assert len(capacities) <= 14  # log2(limit / 256), and the clamp
    assert capacities[-1] == limit


def test_last_frame_takes_no_more_than_it_needs() -> None:
    assembler = Assembler(1_000_000)
    assembler.push(BINARY, False, b"x" * 300_000)
    assembler.push(CONTINUATION, True, b"x" * 400_000)
    assert assembler.capacity == 700_000
    assembler.take()
    assembler.push(BINARY, True, b"x")
    assert assembler.capacity == 1


@pytest.mark.parametrize("part", [b"", b"a", b"ab\xc3\xa9"])
def test_memory_stays_below_the_limit_whatever_the_size_of_fragments(part: bytes) -> None:
    limit = 100_000
    assembler = Assembler(limit)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        verdict = assembler.push(TEXT, False, part)
        while verdict is Verdict.MORE:
            verdict = assembler.push(CONTINUATION, False, part)
        _, peak = tracemalloc.get_traced_memory()
        assert verdict is (Verdict.TOO_LARGE if part else Verdict.TOO_MANY_FRAGMENTS)
        # Resizing may hold the old and the new buffer for a moment: below twice the limit.
        assert peak - before < (2 * limit if part else 2_000)
        after, _ = tracemalloc.get_traced_memory()
        assert after - before < 2_000
    finally:
        tracemalloc.stop()


def test_taking_binary_copies_nothing() -> None:
    size = 1_000_000
    part = b"x" * (size // 4)
    assembler = Assembler(size)
    push_all(assembler, BINARY, [part] * 4)
    tracemalloc.start()
    try:
        message = assembler.take()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(message) == size
    assert peak < 10_000
    assert sys.getrefcount(message) == sys.getrefcount(b"another" + part)


def test_take_reset_and_deletion_free_the_buffer() -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for last in ("take", "reset", "delete"):
            assembler = Assembler(1_000_000)
            assembler.push(TEXT, False, b"x" * 900_000)
            assert assembler.capacity == 900_000
            if last == "take":
                assembler.push(CONTINUATION, True, b"")
                assembler.take()
            elif last == "reset":
                assembler.reset()
            else:
                del assembler
            after, _ = tracemalloc.get_traced_memory()
            assert after - before < 5_000, last
    finally:
        tracemalloc.stop()


def test_out_of_memory_drops_the_message() -> None:
    testcapi = pytest.importorskip("_testcapi")
    assembler = Assembler(LIMIT)
    assembler.push(BINARY, False, b"x" * 300)
    part = b"y" * 600
    testcapi.set_nomemory(0, 0)
    try:
        assembler.push(CONTINUATION, False, part)
    except MemoryError:
        failed = True
    else:
        failed = False
    finally:
        testcapi.remove_mem_hooks()
    assert failed
    assert (assembler.capacity, assembler.size, assembler.active()) == (0, 0, False)
    assert assembler.push(BINARY, True, b"next") is Verdict.MESSAGE
    assert assembler.take() == b"next"
