"""Whatever bytes come, a connection makes of them what RFC 6455 says, however they are cut into reads."""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuzz.receiver import LIMIT, Model, receive
from support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, encode

EXAMPLES = int(os.environ.get("FABRIC_FUZZ_SECONDS") or 0) * 20 or 300


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.SelectorEventLoop()
    asyncio.set_event_loop(None)
    yield loop
    loop.close()


texts = st.text(max_size=60).map(str.encode) | st.binary(max_size=60) | st.integers(0, LIMIT + 2).map(bytes)
close_bodies = st.just(b"") | st.binary(max_size=3) | st.builds(
    lambda code, reason: code.to_bytes(2, "big") + reason,
    st.integers(990, 1020) | st.integers(2990, 3010) | st.integers(4990, 5010) | st.integers(0, 65535),
    st.text(max_size=20).map(str.encode) | st.binary(max_size=123),
)  # fmt: skip

good_frames = (
    st.builds(encode, st.sampled_from([TEXT, BINARY, CONTINUATION]), texts, fin=st.booleans())
    | st.builds(encode, st.sampled_from([PING, PONG]), st.binary(max_size=125))
)  # fmt: skip
any_frames = (
    st.builds(
        encode,
        st.integers(0, 15),
        texts,
        fin=st.booleans(),
        rsv=st.sampled_from([0, 0, 0, 1, 2, 4, 7]),
        mask=st.sampled_from([True, True, True, False]),
        form=st.sampled_from([None, None, 2, 8]),
    )
    | st.builds(encode, st.just(BINARY), st.binary(max_size=10), length=st.integers(0, (1 << 64) - 1))
    | st.builds(encode, st.just(CLOSE), close_bodies)
    | st.binary(max_size=20)
)

streams = st.builds(
    lambda good, more, cut: b"".join([*good, *more])[: None if cut is None else -cut],
    st.lists(good_frames, max_size=12),
    st.lists(any_frames | good_frames, max_size=4),
    st.none() | st.integers(1, 12),
)


@st.composite
def cut_streams(draw: st.DrawFn) -> list[bytes]:
    """A stream in pieces, some of one byte."""
    data = draw(streams)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


@settings(max_examples=EXAMPLES)
@given(pieces=cut_streams())
@example(pieces=[bytes([byte]) for byte in encode(TEXT, "😀", fin=False) + encode(CONTINUATION) + encode(CLOSE)])
@example(pieces=[encode(TEXT, b"\x80 is no beginning")[:-15]])
def test_bytes_are_read_as_the_model_reads_them(loop: asyncio.AbstractEventLoop, pieces: list[bytes]) -> None:
    expected = Model().read(b"".join(pieces))
    got = loop.run_until_complete(receive(pieces))
    assert got.messages == expected.messages
    assert got.pongs == expected.pongs[: len(got.pongs)]
    assert got.codes <= expected.codes
    if expected.codes == {None}:
        assert got.pongs == expected.pongs


@settings(max_examples=EXAMPLES)
@given(data=st.binary(max_size=300), fin=st.booleans(), rest=st.binary(max_size=100))
@example(data=zlib.compress(bytes(100_000))[2:-4], fin=True, rest=b"")
def test_what_is_not_deflate_is_refused_or_read(
    loop: asyncio.AbstractEventLoop, data: bytes, fin: bool, rest: bytes
) -> None:
    pieces = [encode(BINARY, data, rsv=4, fin=fin), encode(CONTINUATION, rest), encode(TEXT, "after")]
    got = loop.run_until_complete(receive(pieces, compressed=True))
    assert got.codes <= {None, 1002, 1007, 1009}
    assert all(len(message) <= LIMIT for _, message in got.messages)
