"""Masking against a slow oracle, at every length and alignment; keys that no two processes share."""

from __future__ import annotations

import array
import os
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_ext import mask as module
from fabric_ext.mask import mask, mask_inplace, random_key, select_kernel

KEY = bytes([0x37, 0xFA, 0x21, 0x3D])
POOL = 1024  # keys from one call of os.urandom

# Every path for short payloads, both ends of it, and a vector loop with every remainder.
LENGTHS = [*range(300), 1023, 1024, 1025, 4096, 65_537]


def slow_mask(data: bytes, key: bytes, offset: int = 0) -> bytes:
    """RFC 6455 §5.3, letter by letter: octet i is XORed with key octet i modulo 4."""
    return bytes(octet ^ key[(i + offset) % 4] for i, octet in enumerate(data))


def kernels() -> list[str]:
    fastest = select_kernel()
    return sorted({"baseline", fastest})


@pytest.fixture(params=kernels(), autouse=True)
def kernel(request: pytest.FixtureRequest):
    select_kernel(request.param)
    yield request.param
    select_kernel()


@pytest.mark.parametrize("offset", range(4))
def test_every_length(rng: random.Random, offset: int) -> None:
    for length in LENGTHS:
        data = rng.randbytes(length)
        assert mask(data, KEY, offset) == slow_mask(data, KEY, offset), length


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 8, 15, 16, 17, 32, 33, 63, 64, 65, 127, 200, 1000])
def test_in_place_at_every_alignment_and_nothing_beside_it(rng: random.Random, length: int) -> None:
    for start in range(64):
        whole = bytearray(rng.randbytes(start + length + 64))
        before = bytes(whole)
        mask_inplace(memoryview(whole)[start : start + length], KEY, start)
        assert whole[:start] == before[:start]
        assert whole[start : start + length] == slow_mask(before[start : start + length], KEY, start)
        assert whole[start + length :] == before[start + length :]


@given(data=st.binary(max_size=400), key=st.binary(min_size=4, max_size=4), offset=st.integers(0, 2**62))
def test_masking_twice_is_nothing(data: bytes, key: bytes, offset: int) -> None:
    assert mask(mask(data, key, offset), key, offset) == data


@given(data=st.binary(max_size=400), cut=st.integers(0, 400), key=st.binary(min_size=4, max_size=4))
def test_pieces_make_the_whole(data: bytes, cut: int, key: bytes) -> None:
    cut = min(cut, len(data))
    assert mask(data[:cut], key) + mask(data[cut:], key, cut) == slow_mask(data, key)


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview, lambda data: array.array("B", data)])
def test_takes_any_buffer(convert) -> None:
    assert mask(convert(b"hello, world"), convert(KEY)) == slow_mask(b"hello, world", KEY)


def test_the_input_stays_as_it_is() -> None:
    data = b"x" * 100
    mask(data, KEY)
    assert data == b"x" * 100


@pytest.mark.parametrize("function", [mask, mask_inplace])
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((bytearray(8), b"abc"), ValueError),
        ((bytearray(8), b"abcde"), ValueError),
        ((bytearray(8), KEY, -1), ValueError),
        ((bytearray(8), "abcd"), TypeError),
        (("text", KEY), TypeError),
        ((memoryview(bytearray(8))[::2], KEY), BufferError),
    ],
)
def test_refuses(function, arguments, error) -> None:
    with pytest.raises(error):
        function(*arguments)


def test_in_place_needs_something_writable() -> None:
    with pytest.raises(BufferError):
        mask_inplace(b"constant", KEY)


def test_an_unknown_kernel_is_refused_and_changes_nothing(kernel: str) -> None:
    with pytest.raises(ValueError, match="abacus"):
        select_kernel("abacus")
    assert mask(b"y" * 100, KEY) == slow_mask(b"y" * 100, KEY)


# --- keys


def test_keys_are_four_bytes_and_do_not_repeat() -> None:
    keys = [random_key() for _ in range(3 * POOL)]
    assert {len(key) for key in keys} == {4}
    # Among 3072 keys of 32 bits one pair is alike once in 900 runs, three pairs once in 10**9 or so.
    assert len(keys) - len(set(keys)) < 3


def test_every_bit_of_a_key_is_random() -> None:
    count = 4 * POOL
    ones = Counter(bit for _ in range(count) for bit in bits(random_key()))
    for bit in range(32):
        assert abs(ones[bit] - count / 2) < 0.1 * count  # 12 standard deviations


def bits(key: bytes) -> list[int]:
    number = int.from_bytes(key, "big")
    return [bit for bit in range(32) if number >> bit & 1]


def test_keys_come_from_the_system_all_of_each_pool_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """picows (Protocol): masking keys come from an unseeded C `rand()`."""
    module._drop_pool()
    given_out = []

    def urandom(size: int) -> bytes:
        given_out.append(size)
        return b"".join(i.to_bytes(4, "big") for i in range(size // 4))

    monkeypatch.setattr(os, "urandom", urandom)
    keys = sorted(random_key() for _ in range(POOL))
    assert given_out == [4 * POOL]
    assert keys == [i.to_bytes(4, "big") for i in range(POOL)]
    random_key()
    assert given_out == [4 * POOL] * 2
    module._drop_pool()


def test_a_failing_system_source_is_an_error_not_a_weak_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(size: int) -> bytes:
        raise OSError("no entropy")

    module._drop_pool()
    monkeypatch.setattr(os, "urandom", fail)
    with pytest.raises(OSError, match="no entropy"):
        random_key()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_shares_no_key_with_its_parent() -> None:
    """picows (Protocol): masking keys are the same in every process."""
    random_key()  # there is a pool to inherit
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write_end, b"".join(random_key() for _ in range(64)))
        finally:
            os._exit(0)
    os.close(write_end)
    try:
        theirs = os.read(read_end, 4 * 64)
    finally:
        os.close(read_end)
        os.waitpid(child, 0)
    assert len(theirs) == 4 * 64
    ours = {random_key() for _ in range(64)}
    assert ours.isdisjoint(theirs[i : i + 4] for i in range(0, len(theirs), 4))
