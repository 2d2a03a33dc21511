"""fabric_ext.deflate with Python's zlib, zstd and plain bytes as oracles."""

from __future__ import annotations

import json
import random
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_ext.deflate import Codec, CorruptData, DeflateCodec, OutputLimit, ZstdCodec
from support.measured import Growth

TAIL = b"\x00\x00\xff\xff"
LIMIT = 1 << 20
HELLO = bytes.fromhex("f248cdc9c90700")  # RFC 7692 §7.2.3.1


def messages(rng: random.Random, count: int = 12) -> list[bytes]:
    """Of many kinds: JSON, noise, runs around the longest match, text of two letters, UTF-8, repeats."""
    made: list[bytes] = []
    for _ in range(count):
        kind = rng.randrange(8)
        if kind == 0:
            made.append(json.dumps({"id": rng.randrange(10**9), "side": rng.choice(["buy", "sell"])}).encode())
        elif kind == 1:
            rows = [{"price": rng.random(), "size": rng.randrange(1000)} for _ in range(rng.randrange(300))]
            made.append(json.dumps(rows).encode())
        elif kind == 2:
            made.append(rng.randbytes(rng.choice([0, 1, 3, 10, 200, 5000, 70_000])))
        elif kind == 3:
            made.append(rng.randbytes(1) * rng.choice([1, 3, 4, 257, 258, 259, 260, 261, 262, 516, 518, 9000, 99_999]))
        elif kind == 4:
            made.append(bytes(rng.choices(b"ab", k=rng.randrange(5000))))
        elif kind == 5:
            made.append("".join(rng.choices("äöüß日本語 ", k=rng.randrange(2000))).encode())
        elif kind == 6 and made:
            made.append(rng.choice(made))
        else:
            made.append(b"")
    return made


def bits(stream: zlib._Compress, data: bytes, mode: int = zlib.Z_SYNC_FLUSH) -> bytes:
    return stream.compress(data) + stream.flush(mode)


# What we send


@pytest.mark.parametrize("window", range(8, 16))
@pytest.mark.parametrize("level", range(1, 10))
def test_zlib_reads_what_we_write_in_a_window_of_the_agreed_size(window: int, level: int, rng: random.Random) -> None:
    codec = DeflateCodec(own_window_bits=window, level=level, mem_level=rng.randrange(1, 10))
    oracle = zlib.decompressobj(-window)
    for message in messages(rng):
        payload = codec.encode(message)
        assert oracle.decompress(payload + TAIL) == message
        assert len(payload) <= len(message) + 6 + len(message) // 65535 * 5 + len(message) // 8 * (level < 4)
        if rng.random() < 0.1:
            codec.release_idle()


def test_long_messages_span_many_blocks_and_windows(rng: random.Random) -> None:
    rows = b"".join(b"%d,%d;" % (rng.randrange(10**6), rng.randrange(50)) for _ in range(120_000))
    for level in (1, 3, 6):
        codec = DeflateCodec(own_window_bits=9, level=level)
        assert zlib.decompressobj(-9).decompress(codec.encode(rows) + TAIL) == rows


@pytest.mark.parametrize("level", [1, 3])
def test_a_long_message_is_worth_codes_of_its_own_at_the_fast_levels(level: int, rng: random.Random) -> None:
    rows = [{"side": rng.choice(["buy", "sell"]), "price": f"{rng.gauss(64_000, 40):.2f}"} for _ in range(250)]
    message = json.dumps(rows).encode()
    whole, parts = DeflateCodec(level=level), DeflateCodec(level=level)
    pieces = [parts.encode(message[at : at + 4000]) for at in range(0, len(message), 4000)]
    assert len(whole.encode(message)) < 0.9 * sum(map(len, pieces))


@given(st.lists(st.binary(max_size=400), max_size=8), st.integers(8, 15), st.integers(1, 9))
def test_any_bytes_survive(data: list[bytes], window: int, level: int) -> None:
    codec = DeflateCodec(own_window_bits=window, level=level)
    oracle = zlib.decompressobj(-window)
    for message in data:
        assert oracle.decompress(codec.encode(message) + TAIL) == message


def test_an_empty_message_is_one_zero_byte() -> None:
    assert DeflateCodec().encode(b"") == b"\x00"  # RFC 7692 §7.2.3.6


def test_any_buffer_is_taken() -> None:
    for data in (b"abc", bytearray(b"abc"), memoryview(b"xabc")[1:]):
        assert DeflateCodec().encode(data) == DeflateCodec().encode(b"abc")


def test_noise_is_stored(rng: random.Random) -> None:
    for size in (100, 1000, 100_000):
        noise = rng.randbytes(size)
        assert len(DeflateCodec().encode(noise)) <= size + 6 + size // 65535 * 5


def test_later_messages_refer_to_earlier_ones_only_with_takeover(rng: random.Random) -> None:
    noise = rng.randbytes(500)
    with_takeover, without = DeflateCodec(), DeflateCodec(own_takeover=False)
    assert len(with_takeover.encode(noise)) > 500 > 20 > len(with_takeover.encode(noise))
    assert len(without.encode(noise)) == len(without.encode(noise)) > 500
    assert without.own_memory == 0


def test_no_message_of_one_connection_is_behind_a_reference_in_anothers(rng: random.Random) -> None:
    secret = rng.randbytes(500)
    a, b = DeflateCodec(own_takeover=False), DeflateCodec(own_takeover=False)
    a.encode(secret)
    payload = b.encode(secret)
    assert len(payload) > 500
    assert zlib.decompressobj(-15).decompress(payload + TAIL) == secret


def test_released_memory_comes_back_with_the_next_message(rng: random.Random) -> None:
    codec, oracle = DeflateCodec(own_window_bits=12), zlib.decompressobj(-12)
    assert codec.own_memory == 0
    for message in messages(rng):
        assert oracle.decompress(codec.encode(message) + TAIL) == message
        assert 16_000 < codec.own_memory < 17_000
        codec.release_idle()
        assert codec.own_memory == 0


@pytest.mark.parametrize("window", [8, 12, 15])
def test_a_shared_message_moves_the_window_of_every_receiver(window: int, rng: random.Random) -> None:
    codecs = [DeflateCodec(own_window_bits=window) for _ in range(3)]
    oracles = [zlib.decompressobj(-window) for _ in codecs]
    assert len({codec.sharing for codec in codecs}) == 1
    assert codecs[0].sharing != DeflateCodec(own_window_bits=window, level=9).sharing
    for number, message in enumerate(messages(rng, 40)):
        if number % 3:
            alone = codecs[0].encode_alone(message)
            payloads = [codec.adopted(alone, message) for codec in codecs]
            assert all(payload is alone for payload in payloads)
        else:
            mine = number // 3 % 3
            payloads = [b"\x00"] * 3
            payloads[mine] = codecs[mine].encode(message)
        for oracle, payload in zip(oracles, payloads, strict=True):
            assert oracle.decompress(payload + TAIL) in (message, b"")


# What we receive


@pytest.mark.parametrize("window", range(8, 16))
def test_we_read_what_zlib_writes_in_any_fragments(window: int, rng: random.Random) -> None:
    codec = DeflateCodec(peer_window_bits=window)
    oracle = zlib.compressobj(rng.randrange(1, 10), zlib.DEFLATED, -max(9, window))
    if window == 8:
        oracle = zlib.compressobj(0, zlib.DEFLATED, -9)  # stored: no zlib compresses with 8 bits
    for message in messages(rng):
        payload = bits(oracle, message)[:-4]
        cuts = sorted(rng.choices(range(len(payload) + 1), k=rng.randrange(4)))
        pieces = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        got = b"".join(
            codec.decode(piece, first=i == 0, fin=i == len(pieces) - 1, limit=LIMIT) for i, piece in enumerate(pieces)
        )
        assert got == message
        if rng.random() < 0.4:
            codec.release_idle()


def test_a_window_survives_release_at_every_fill(rng: random.Random) -> None:
    """The peer goes on referring to what it sent before: what was read out must be all of it."""
    for window in (9, 12, 15):
        for filled in (1, 2, 3, 257, 258, 259, 260, 261, (1 << window) - 1, 1 << window, 3 << window):
            codec = DeflateCodec(peer_window_bits=window)
            oracle = zlib.compressobj(9, zlib.DEFLATED, -window)
            noise = rng.randbytes(filled)
            for message in (noise, noise[-(1 << window) :], noise[-200:], noise[:200]):
                assert codec.decode(bits(oracle, message)[:-4], limit=LIMIT) == message
                codec.release_idle()
                codec.release_idle()


def test_release_inside_a_message_keeps_what_it_needs() -> None:
    codec = DeflateCodec()
    assert codec.decode(HELLO[:3], fin=False, limit=9) + codec.decode(HELLO[3:], first=False, limit=9) == b"Hello"
    out = codec.decode(HELLO[:3], fin=False, limit=9)
    codec.release_idle()
    assert out + codec.decode(HELLO[3:], first=False, limit=9) == b"Hello"


@pytest.mark.parametrize(
    "payload",
    [
        HELLO,
        bytes.fromhex("000500faff48656c6c6f00"),  # §7.2.3.3: a stored block
        bytes.fromhex("f348cdc9c9070000"),  # §7.2.3.4: BFINAL
        bytes.fromhex("f248050000 00ffffcac9c90700"),  # §7.2.3.5: two blocks
        bytes.fromhex("f348cdc9c90700"),  # BFINAL, without the empty block after it
    ],
)
def test_the_examples_of_the_rfc(payload: bytes) -> None:
    codec = DeflateCodec()
    for _ in range(3):
        assert codec.decode(payload, limit=5) == b"Hello"
    for cut in range(len(payload) + 1):
        head = codec.decode(payload[:cut], fin=False, limit=5)
        assert head + codec.decode(payload[cut:], first=False, limit=5) == b"Hello"
    assert codec.decode(HELLO, limit=5) == b"Hello"


def test_streams_that_end_inside_a_message_are_followed_by_others() -> None:
    parts = [bits(zlib.compressobj(wbits=-15), b"part %d " % i, zlib.Z_FINISH) for i in range(20)]
    codec = DeflateCodec()
    expected = b"".join(b"part %d " % i for i in range(20))
    assert codec.decode(b"".join(parts) + b"\x00", limit=len(expected)) == expected
    with pytest.raises(OutputLimit):
        codec.decode(b"".join(parts) + b"\x00", limit=len(expected) - 1)


def test_a_frame_cannot_be_full_of_streams() -> None:
    with pytest.raises(CorruptData, match="streams"):
        DeflateCodec().decode(b"\x03\x00" * 100_000, limit=LIMIT)


@pytest.mark.parametrize("empty", [b"\x00", b"", b"\x02\x00"])
def test_empty_messages(empty: bytes) -> None:
    codec = DeflateCodec()
    assert codec.decode(HELLO, limit=5) == b"Hello"
    assert codec.decode(empty, limit=0) == b""
    assert codec.decode(b"", fin=False, limit=0) == codec.decode(empty, first=False, limit=0) == b""
    assert codec.decode(bytes.fromhex("f200110000"), limit=5) == b"Hello"  # §7.2.3.2: refers to the first


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff" * 10,
        b"Hello",
        b"\x06",  # the reserved block type
        HELLO + b"garbage",
        bytes.fromhex("f348cdc9c90700") + b"garbage",  # behind BFINAL
        bytes.fromhex("f348cdc9c9"),  # ends inside its final block
        bytes.fromhex("010500faff4865"),  # a final stored block, cut off
        bytes.fromhex("f200110000"),  # refers to what never was
    ],
)
def test_garbage_is_refused_and_ends_the_codec(payload: bytes) -> None:
    codec = DeflateCodec()
    with pytest.raises(CorruptData):
        codec.decode(payload, limit=LIMIT)
    with pytest.raises(CorruptData, match="earlier"):
        codec.decode(HELLO, limit=LIMIT)
    codec.release_idle()
    with pytest.raises(CorruptData, match="earlier"):
        codec.decode(HELLO, limit=LIMIT)


@given(st.binary(max_size=300), st.integers(8, 15))
def test_no_input_raises_anything_else(payload: bytes, window: int) -> None:
    codec = DeflateCodec(peer_window_bits=window)
    try:
        assert len(codec.decode(payload, limit=5000)) <= 5000
        codec.release_idle()
        codec.decode(payload, limit=5000)
    except (CorruptData, OutputLimit):
        pass


def test_distances_beyond_the_agreed_window_are_refused(rng: random.Random) -> None:
    noise = rng.randbytes(3000)
    oracle = zlib.compressobj(9, zlib.DEFLATED, -15)
    first, second = bits(oracle, noise)[:-4], bits(oracle, noise)[:-4]
    codec = DeflateCodec(peer_window_bits=9)
    assert codec.decode(first, limit=LIMIT) == noise
    with pytest.raises(CorruptData):
        codec.decode(second, limit=LIMIT)


def test_frames_out_of_order_are_refused() -> None:
    with pytest.raises(CorruptData):
        DeflateCodec().decode(HELLO, first=False, limit=9)
    codec = DeflateCodec()
    codec.decode(HELLO, fin=False, limit=9)
    with pytest.raises(CorruptData):
        codec.decode(HELLO, limit=9)


def test_without_takeover_of_the_peer_nothing_is_kept_and_nothing_may_be_referred_to() -> None:
    codec = DeflateCodec(peer_takeover=False)
    assert codec.decode(HELLO, limit=5) == b"Hello"
    with pytest.raises(CorruptData):
        codec.decode(bytes.fromhex("f200110000"), limit=5)


# Bombs


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A gigabyte of zeros."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    part = bits(stream, bytes(1 << 24), zlib.Z_FULL_FLUSH)  # refers to nothing outside it
    return (part * 64)[:-4]


def peak(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limit", [0, 1, 1000, 10 << 20])
def test_a_bomb_costs_no_more_than_the_limit(bomb: bytes, limit: int) -> None:
    codec = DeflateCodec()

    def explode() -> None:
        with pytest.raises(OutputLimit) as caught:
            codec.decode(bomb, limit=limit)
        assert (caught.value.size, caught.value.limit) == (limit + 1, limit)

    assert peak(explode) < 2 * limit + 3 * len(bomb) + 100_000
    with pytest.raises(CorruptData):
        codec.decode(HELLO, limit=limit)


def test_a_bomb_in_small_fragments_is_found_at_the_limit(bomb: bytes) -> None:
    codec = DeflateCodec()
    left = limit = 100_000
    pieces = iter(bomb[at : at + 7] for at in range(0, 1000, 7))
    left -= len(codec.decode(next(pieces), fin=False, limit=left))
    caught = None
    for piece in pieces:
        try:
            left -= len(codec.decode(piece, first=False, fin=False, limit=left))
        except OutputLimit as error:
            caught = error
            break
    assert caught is not None
    assert (caught.size, caught.limit) == (limit + 1, limit)


def test_a_message_of_exactly_the_limit_passes_and_not_one_byte_more() -> None:
    for size in (1, 100, 16_384, 65_536, 100_000):
        payload = DeflateCodec().encode(bytes(size))
        assert len(DeflateCodec().decode(payload, limit=size)) == size
        with pytest.raises(OutputLimit):
            DeflateCodec().decode(payload, limit=size - 1)
        full = DeflateCodec()  # the first fragment exactly fills the limit
        stream = zlib.compressobj(wbits=-15)
        full.decode(bits(stream, bytes(size)), fin=False, limit=size)
        with pytest.raises(OutputLimit):
            full.decode(bits(stream, b"x")[:-4], first=False, limit=0)


# Zstd


DICTIONARY = b'{"type":"trade","symbol":"BTC-USD","price":' * 20


@pytest.mark.parametrize("dictionary", [None, DICTIONARY])
@pytest.mark.parametrize("takeover", [True, False])
def test_zstd_messages_survive(dictionary: bytes | None, takeover: bool, rng: random.Random) -> None:
    sender = ZstdCodec(own_window_bits=12, own_takeover=takeover, dictionary=dictionary)
    receiver = ZstdCodec(peer_window_bits=12, peer_takeover=takeover, dictionary=dictionary)
    for number, message in enumerate(messages(rng, 30)):
        if number % 4 == 3:
            payload = sender.adopted(sender.encode_alone(message), message)
        else:
            payload = sender.encode(message)
        cut = rng.randrange(len(payload) + 1)
        head = receiver.decode(payload[:cut], fin=False, limit=LIMIT)
        assert head + receiver.decode(payload[cut:], first=False, limit=LIMIT - len(head)) == message
        if number % 5 == 4:
            sender.release_idle()
            receiver.release_idle()


def test_zstd_refers_to_earlier_messages_and_to_the_dictionary() -> None:
    message = b'{"type":"trade","symbol":"BTC-USD","price":17}'
    plain, trained = ZstdCodec(), ZstdCodec(dictionary=DICTIONARY)
    assert len(plain.encode(message)) > 40 > 20 > len(plain.encode(message))
    assert len(trained.encode(message)) < 25


@pytest.mark.parametrize("bits", [10, 12, 15, 17])
@pytest.mark.parametrize("limit", [0, 1, 1000, 100_000, 10 << 20])
def test_the_tightest_zstd_bomb_costs_no_more_than_the_limit(bits: int, limit: int) -> None:
    """Of blocks that repeat one byte (RFC 8878 §3.1.1.2.2): 4 bytes become as many as the window holds."""
    block = min(1 << bits, 1 << 17)
    header = b"\x28\xb5\x2f\xfd" + bytes([0, (bits - 10) << 3])
    bomb = header + (((block << 3) | 2).to_bytes(3, "little") + b"x") * 100_000
    codec = ZstdCodec(peer_window_bits=bits)

    def explode() -> None:
        with pytest.raises(OutputLimit) as caught:
            codec.decode(bomb, limit=limit)
        assert (caught.value.size, caught.value.limit) == (limit + 1, limit)

    assert peak(explode) < limit + 8 * block + 300_000
    exact = ZstdCodec(peer_window_bits=bits)
    assert exact.decode(bomb[: len(header) + 4 * 50], limit=50 * block) == b"x" * (50 * block)


def test_zstd_bombs_and_garbage() -> None:
    bomb = ZstdCodec().encode(bytes(50 << 20))
    codec = ZstdCodec()

    def explode() -> None:
        with pytest.raises(OutputLimit):
            codec.decode(bomb, limit=1 << 20)

    assert peak(explode) < 4 << 20
    with pytest.raises(CorruptData):
        codec.decode(bomb, limit=1 << 30)
    with pytest.raises(CorruptData):
        ZstdCodec().decode(b"no zstd at all", limit=LIMIT)
    with pytest.raises(CorruptData):
        ZstdCodec(peer_window_bits=10).decode(ZstdCodec(own_window_bits=20).encode(b"x" * 9000), limit=LIMIT)
    with pytest.raises(CorruptData, match="streams"):
        ZstdCodec().decode(ZstdCodec().encode_alone(b"") * 1000, limit=LIMIT)


@given(st.binary(max_size=300), st.integers(10, 17), st.booleans())
def test_no_input_to_zstd_raises_anything_else(payload: bytes, bits: int, begun: bool) -> None:
    codec = ZstdCodec(peer_window_bits=bits)
    header = b"\x28\xb5\x2f\xfd\x00\x00" if begun else b""  # of a frame with the smallest window
    try:
        assert len(codec.decode(header + payload, limit=5000)) <= 5000
        codec.release_idle()
        codec.decode(payload, limit=5000)
    except (CorruptData, OutputLimit):
        pass


# Both


def every_deflate_setting() -> Iterator[Codec]:
    for window in range(8, 16):
        for level in range(1, 10):
            for mem_level in range(1, 10):
                yield DeflateCodec(own_window_bits=window, level=level, mem_level=mem_level)


def many_zstd_dictionaries() -> Iterator[Codec]:
    for number in range(200):
        yield ZstdCodec(own_window_bits=12, dictionary=b"%d" % number * 20_000)


@pytest.mark.parametrize("codecs", [every_deflate_setting, many_zstd_dictionaries])
def test_few_compressors_are_kept_for_messages_that_refer_to_nothing(codecs: Callable[[], Iterator[Codec]]) -> None:
    growth = Growth()
    for codec in codecs():
        codec.encode_alone(b"a message to many")
    assert growth.measure()["kept"] < 12 << 20  # all of them take 20 MB, and 110


@pytest.mark.parametrize("make", [DeflateCodec, ZstdCodec])
def test_threads_may_compress_with_the_same_settings(make: Callable[[], Codec], rng: random.Random) -> None:
    """zstandard lets other threads run while it compresses."""
    texts = [json.dumps([rng.random() for _ in range(2000)]).encode() for _ in range(4)]

    def compress(text: bytes) -> list[bytes]:
        codec = make()
        return [codec.encode_alone(text) for _ in range(50)]

    with ThreadPoolExecutor(len(texts)) as threads:
        for text, payloads in zip(texts, threads.map(compress, texts), strict=True):
            assert [make().decode(payload, limit=len(text)) for payload in payloads] == [text] * 50


@pytest.mark.parametrize("make", [DeflateCodec, ZstdCodec])
def test_both_directions_are_counted(make: Callable[[], Codec]) -> None:
    here, there = make(), make()
    payloads = [here.encode(b"x" * size) for size in (10, 1000)]
    for payload in payloads:
        there.decode(payload, limit=LIMIT)
    wire = sum(map(len, payloads))
    assert (here.plain_out, here.wire_out, here.wire_in, here.plain_in) == (1010, wire, 0, 0)
    assert (there.plain_out, there.wire_out, there.wire_in, there.plain_in) == (0, 0, wire, 1010)


@pytest.mark.parametrize(
    "call",
    [
        lambda: DeflateCodec(own_window_bits=7),
        lambda: DeflateCodec(own_window_bits=16),
        lambda: DeflateCodec(peer_window_bits=16),
        lambda: DeflateCodec(level=10),
        lambda: DeflateCodec(mem_level=0),
        lambda: ZstdCodec(own_window_bits=9),
        lambda: ZstdCodec(level=0),
    ],
)
def test_numbers_out_of_range(call: Callable[[], Codec]) -> None:
    with pytest.raises(ValueError, match="must be from"):
        call()


def test_the_base_is_abstract() -> None:
    with pytest.raises(TypeError):
        Codec()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_conversation(data: st.DataObject) -> None:
    """Two ends, any terms, both directions, broadcasts and releases in any order."""
    a_bits, b_bits = data.draw(st.integers(8, 15)), data.draw(st.integers(8, 15))
    a_keeps, b_keeps = data.draw(st.booleans()), data.draw(st.booleans())
    a = DeflateCodec(own_window_bits=a_bits, peer_window_bits=b_bits, own_takeover=a_keeps, peer_takeover=b_keeps)
    b = DeflateCodec(own_window_bits=b_bits, peer_window_bits=a_bits, own_takeover=b_keeps, peer_takeover=a_keeps)
    words = st.lists(st.sampled_from([b'"price": ', b"buy", b"sell", b"0123", b"\x00", b"x" * 300]), max_size=30)
    for step in data.draw(st.lists(st.sampled_from(["send", "share", "release"]), max_size=15)):
        sender, receiver = data.draw(st.sampled_from([(a, b), (b, a)]))
        message = b"".join(data.draw(words))
        if step == "release":
            sender.release_idle()
            continue
        payload = sender.encode(message) if step == "send" else sender.adopted(sender.encode_alone(message), message)
        assert receiver.decode(payload, limit=len(message)) == message
