"""Frames right and wrong, and the close handshake in every order, as a server meets them.

Each time: what the peer gets, in which order, and that both sides know the right close code and reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import tracemalloc
from typing import Any

import pytest

from fabric.error import ConnectionClosed, InvalidFrame, MessageTooLarge, Utf8Error
from fabric.server import ConnectedClient
from fabric_ext.protocol import State
from support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Wire, close_frame, encode
from support.raw_peer import RawPeer
from support.serving import Held, Recorder, echo, serve, until

Stack = contextlib.AsyncExitStack

LIMIT = 100_000  # bytes of a message

# --- faults ------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[bytes, int]] = {
    **{f"reserved bits {bits} on text": (encode(TEXT, "x", rsv=bits), 1002) for bits in range(1, 8)},
    **{f"reserved bits {bits} on ping": (encode(PING, "x", rsv=bits), 1002) for bits in (1, 2, 4, 7)},
    "reserved bit on close": (encode(CLOSE, b"\x03\xe8", rsv=4), 1002),
    "reserved bit on a continuation": (encode(TEXT, "x", fin=False) + encode(CONTINUATION, "y", rsv=4), 1002),
    **{f"opcode {opcode}": (encode(opcode, "x"), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "unmasked text": (encode(TEXT, "x", mask=False), 1002),
    "unmasked ping": (encode(PING, mask=False), 1002),
    "unmasked close": (close_frame(1000, mask=False), 1002),
    "length 2^63": (encode(BINARY, b"x", length=1 << 63), 1002),
    "length 2^64 - 1": (encode(BINARY, b"x", length=(1 << 64) - 1), 1002),
    "length 2^63 - 1": (encode(BINARY, b"x", length=(1 << 63) - 1), 1009),
    "length one over the limit": (encode(BINARY, b"x", length=LIMIT + 1), 1009),
    "length in 2 bytes where none would do": (encode(BINARY, b"x" * 125, form=2), 1002),
    "length in 8 bytes where 2 would do": (encode(BINARY, b"x" * 65535, form=8), 1002),
    "continuation of nothing": (encode(CONTINUATION, "x"), 1002),
    "unfinished continuation of nothing": (encode(CONTINUATION, "x", fin=False), 1002),
    "text in a text": (encode(TEXT, "a", fin=False) + encode(TEXT, "b"), 1002),
    "binary in a text": (encode(TEXT, "a", fin=False) + encode(BINARY, "b", fin=False), 1002),
    "fragments over the limit": (
        encode(BINARY, b"x" * (LIMIT - 1), fin=False) + encode(CONTINUATION, b"y" * 2, fin=False),
        1009,
    ),
    "fragmented ping": (encode(PING, "x", fin=False), 1002),
    "fragmented close": (encode(CLOSE, b"\x03\xe8", fin=False), 1002),
    "ping of 126 bytes": (encode(PING, b"x" * 126), 1002),
    "pong of 65536 bytes": (encode(PONG, b"x" * 65536), 1002),
    "close of 126 bytes": (encode(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    "bad UTF-8": (encode(TEXT, b"ok \xff"), 1007),
    "UTF-8 that breaks off": (encode(TEXT, b"\xf0\x9f\x92"), 1007),
    "a surrogate": (encode(TEXT, b"\xed\xa0\x80"), 1007),
    "overlong": (encode(TEXT, b"\xc0\xaf"), 1007),
    "bad UTF-8 in the first fragment": (encode(TEXT, b"\xff", fin=False), 1007),
    "bad UTF-8 in the second fragment": (
        encode(TEXT, "a", fin=False) + encode(CONTINUATION, b"\xff", fin=False),
        1007,
    ),
    "bad UTF-8 across fragments": (
        encode(TEXT, b"\xc3", fin=False) + encode(CONTINUATION, b"(", fin=False),
        1007,
    ),
    "UTF-8 that the last fragment does not complete": (
        encode(TEXT, b"\xf0\x9f", fin=False) + encode(CONTINUATION, b"\x92"),
        1007,
    ),
    "a close of one byte": (encode(CLOSE, b"\x03"), 1002),
    **{
        f"close code {code}": (close_frame(code, "why"), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "close reason in bad UTF-8": (close_frame(1000, b"\xff"), 1007),
    "close reason in UTF-8 that breaks off": (close_frame(1000, b"x" * 122 + b"\xc3"), 1007),
}  # fmt: skip

KINDS = {1002: InvalidFrame, 1007: Utf8Error, 1009: MessageTooLarge}


@pytest.mark.parametrize("arrival", ["alone", "after a message"])
@pytest.mark.parametrize("case", FAULTS)
async def test_a_fault_fails_the_connection(stack: Stack, case: str, arrival: str) -> None:
    """picows (Protocol): order of fragments, reserved bits, UTF-8 and some close codes are not checked.

    RFC 6455 §7.1.7; and what came before in the same read is served first.
    """
    data, code = FAULTS[case]
    recorder = Recorder(echo=True)
    server = await serve(stack, recorder, max_message_size=LIMIT)
    async with await RawPeer.open(server.port) as peer:
        before = [encode(TEXT, "one"), encode(BINARY, b"two")] if arrival != "alone" else []
        # What follows a fault means nothing any more, whatever it looks like.
        peer.send(*before, data, encode(TEXT, "never"), encode(PING, "never"), close_frame(1000))
        frames = await peer.rest()
        assert [(frame.opcode, frame.payload) for frame in frames[:-1]] == [(TEXT, b"one"), (BINARY, b"two")][
            : len(before)
        ]
        assert frames[-1].opcode == CLOSE
        assert frames[-1].close_code == code
        assert 0 < len(frames[-1].close_reason) <= 123
    await recorder.ended()
    assert recorder.messages == ["one", b"two"][: len(before)]
    client, error = recorder.client, recorder.error
    assert (client.close_code, client.close_reason) == (code, frames[-1].close_reason)
    assert client.state is State.CLOSED
    assert isinstance(error, ConnectionClosed)
    assert (error.code, error.reason, error.by) == (code, client.close_reason, "local")
    assert isinstance(error.__cause__, KINDS[code])


async def test_a_continuation_after_the_end(stack: Stack) -> None:
    recorder = Recorder()
    server = await serve(stack, recorder)
    async with await RawPeer.open(server.port) as peer:
        peer.send(encode(TEXT, "a", fin=False), encode(CONTINUATION, "b"), encode(CONTINUATION, "c"))
        assert (await peer.close_seen())[0] == 1002
    await recorder.ended()
    assert recorder.messages == ["ab"]


@pytest.mark.parametrize("case", ["opcode 3", "bad UTF-8", "length 2^63 - 1", "text in a text"])
async def test_a_fault_in_the_first_bytes_of_all(stack: Stack, case: str) -> None:
    """Right behind the request, in one segment with it."""
    data, code = FAULTS[case]
    recorder = Recorder()
    server = await serve(stack, recorder, max_message_size=LIMIT)
    async with await RawPeer.open(server.port, rest=data) as peer:
        assert (await peer.close_seen())[0] == code
        await peer.closed()
    await recorder.ended()
    assert recorder.client.close_code == code


@pytest.mark.parametrize("case", ["opcode 3", "bad UTF-8"])
async def test_a_peer_that_ignores_that_it_was_refused(stack: Stack, case: str) -> None:
    """It neither reads nor hangs up: the deadline ends it."""
    recorder = Recorder()
    server = await serve(stack, recorder, close_timeout=0.1)
    async with await RawPeer.open(server.port) as peer:
        peer.send(FAULTS[case][0])
        await recorder.ended()
        assert recorder.client.close_code == FAULTS[case][1]


async def test_a_peer_that_floods_after_it_was_refused(stack: Stack) -> None:
    """picows (Protocol): it parses on for 10 ms after a fault.

    What still comes is thrown away, so the close frame is not destroyed by a reset.
    """
    recorder = Recorder()
    server = await serve(stack, recorder)
    async with await RawPeer.open(server.port) as peer:
        peer.send(encode(3), *(encode(BINARY, b"x" * 50_000) for _ in range(100)))
        with contextlib.suppress(ConnectionError):
            await peer.writer.drain()
        assert (await peer.close_seen())[0] == 1002
        await peer.closed()
    await recorder.ended()
    assert recorder.messages == []


# --- what is right -----------------------------------------------------------------------------------------


async def test_messages_of_every_form_of_length(stack: Stack) -> None:
    server = await serve(stack, echo)
    async with await RawPeer.open(server.port) as peer:
        for size in (0, 1, 125, 126, 127, 65535, 65536, 200_000):
            for opcode in (TEXT, BINARY):
                peer.send_frame(opcode, b"x" * size)
                assert await peer.frame() == Wire(opcode, b"x" * size)


async def test_a_message_that_comes_byte_by_byte(stack: Stack) -> None:
    server = await serve(stack, echo)
    async with await RawPeer.open(server.port) as peer:
        for byte in encode(TEXT, "é" * 70) + encode(PING, "p") + encode(BINARY, b""):
            peer.send(bytes([byte]))
            await asyncio.sleep(0.0005)
        assert [await peer.frame() for _ in range(3)] == [
            Wire(TEXT, "é".encode() * 70),
            Wire(PONG, b"p"),
            Wire(BINARY, b""),
        ]


@pytest.mark.parametrize("cut", range(1, 12))
async def test_fragments_with_control_frames_between(stack: Stack, cut: int) -> None:
    """Text may be cut within a character (RFC 6455 §5.6); a ping in between is answered at once (§5.4)."""
    server = await serve(stack, echo)
    text = "aé日💥z".encode()
    async with await RawPeer.open(server.port) as peer:
        peer.send_frame(TEXT, text[:cut], fin=False)
        peer.send_frame(PING, "between")
        assert await peer.frame() == Wire(PONG, b"between")
        peer.send_frame(CONTINUATION, b"", fin=False)
        peer.send_frame(PONG, "unasked for")
        peer.send_frame(CONTINUATION, text[cut:], fin=True)
        assert await peer.frame() == Wire(TEXT, text)


async def test_a_message_of_exactly_the_limit(stack: Stack) -> None:
    server = await serve(stack, echo, max_message_size=LIMIT)
    async with await RawPeer.open(server.port) as peer:
        peer.send_binary(b"x" * LIMIT)
        peer.send_frame(BINARY, b"x" * (LIMIT - 1), fin=False)
        peer.send_frame(CONTINUATION, b"x", fin=False)
        peer.send_frame(CONTINUATION, b"")
        assert [len(await peer.payload()) for _ in range(2)] == [LIMIT, LIMIT]


async def test_too_many_fragments(stack: Stack) -> None:
    recorder = Recorder()
    server = await serve(stack, recorder, max_fragments=10)
    async with await RawPeer.open(server.port) as peer:
        peer.send(
            encode(TEXT, "a", fin=False),
            *[encode(CONTINUATION, b"", fin=False)] * 8,
            encode(CONTINUATION, "b"),
        )
        await until(lambda: recorder.messages == ["ab"])
        peer.send(encode(TEXT, "a", fin=False), *[encode(CONTINUATION, b"", fin=False)] * 20)
        assert (await peer.close_seen())[0] == 1008
    await recorder.ended()
    assert recorder.client.close_code == 1008


async def test_pings_are_answered_with_their_payload(stack: Stack) -> None:
    server = await serve(stack, Held())
    async with await RawPeer.open(server.port) as peer:
        for payload in (b"", b"x", bytes(range(125))):
            peer.send_frame(PING, payload)
            assert await peer.frame() == Wire(PONG, payload)


async def test_answers_leave_in_the_order_of_what_they_answer(stack: Stack) -> None:
    """Also where all came in one read: a pong or a close does not overtake the answers of a task that waits."""
    server = await serve(stack, Recorder(echo=True))
    async with await RawPeer.open(server.port) as peer:
        peer.send(
            encode(TEXT, "one"),
            encode(TEXT, "two"),
            encode(PING, "here?"),
            encode(TEXT, "three"),
            close_frame(1000),
            encode(TEXT, "x"),
        )
        got = [(frame.opcode, frame.payload) for frame in await peer.rest()]
    assert got == [(TEXT, b"one"), (TEXT, b"two"), (PONG, b"here?"), (TEXT, b"three"), (CLOSE, b"\x03\xe8")]


@pytest.mark.parametrize(
    ("buffer_size", "size", "count", "together"),
    [(1024, 10, 40, 16), (4, 10, 10, 4), (1, 10, 3, 1), (1024, 5000, 6, 4)],
)
async def test_a_waiting_task_is_resumed_once_for_some_messages_of_a_read(
    stack: Stack, buffer_size: int, size: int, count: int, together: int
) -> None:
    received: list[int] = []

    async def handler(client: ConnectedClient) -> None:
        async for _ in client:
            received.append(client.messages_received)

    server = await serve(stack, handler, buffer_size=buffer_size)
    async with await RawPeer.open(server.port) as peer:
        peer.send(encode(BINARY, bytes(30_000)))  # the read buffer grows to what comes
        await until(lambda: received == [1])
        peer.send(*[encode(BINARY, bytes(size))] * count)
        await until(lambda: len(received) == 1 + count)
        assert received[1:] == [1 + min(count, together * (n // together + 1)) for n in range(count)]
        peer.send_close(1000)
        await peer.rest()


# --- the peer closes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1010, 1011, 1014, 3000, 3999, 4000, 4999])
async def test_the_peer_closes(stack: Stack, code: int) -> None:
    """picows (Protocol): CLOSE is not answered by itself."""
    recorder = Recorder()
    server = await serve(stack, recorder)
    reason = "r" * 121 + "é"
    async with await RawPeer.open(server.port) as peer:
        peer.send_text("last words")
        peer.send_close(code, reason)
        # RFC 6455 §5.5.1: echoes the code; and the reason, as browsers do.
        assert await peer.frame() == Wire(CLOSE, code.to_bytes(2, "big") + reason.encode())
        await peer.closed()  # §7.1.1: the server hangs up first
    await recorder.ended()
    assert recorder.messages == ["last words"]
    assert (recorder.client.close_code, recorder.client.close_reason) == (code, reason)
    if code in (1000, 1001):
        assert recorder.error is None
    else:
        assert recorder.error is not None
        assert (recorder.error.code, recorder.error.reason, recorder.error.by) == (code, reason, "remote")
    with pytest.raises(ConnectionClosed) as caught:
        await recorder.client.send("too late")
    assert (caught.value.code, caught.value.reason, caught.value.clean) == (code, reason, True)


async def test_the_peer_closes_without_a_code(stack: Stack) -> None:
    """picows (Protocol): `send_close()` without a code writes code 0."""
    recorder = Recorder()
    server = await serve(stack, recorder)
    async with await RawPeer.open(server.port) as peer:
        peer.send_close(None)
        assert await peer.frame() == Wire(CLOSE, b"")
        await peer.closed()
    await recorder.ended()
    assert (recorder.client.close_code, recorder.client.close_reason, recorder.error) == (1005, "", None)


async def test_data_after_the_close_frame_is_ignored(stack: Stack) -> None:
    """picows (Protocol): data after CLOSE is handed over."""
    recorder = Recorder(echo=True)
    server = await serve(stack, recorder)
    async with await RawPeer.open(server.port) as peer:
        peer.send(
            encode(TEXT, "before"),
            close_frame(1000, "bye"),
            encode(TEXT, "after"),
            encode(PING, "after"),
            close_frame(4000, "again"),
            encode(3, "wrong"),
            encode(TEXT, b"\xff"),
        )
        assert await peer.rest() == [Wire(TEXT, b"before"), Wire(CLOSE, b"\x03\xe8bye")]
    await recorder.ended()
    assert (recorder.messages, recorder.client.close_code, recorder.client.close_reason) == (
        ["before"],
        1000,
        "bye",
    )


async def test_a_close_between_fragments(stack: Stack) -> None:
    recorder = Recorder()
    server = await serve(stack, recorder)
    async with await RawPeer.open(server.port) as peer:
        peer.send_frame(TEXT, "half", fin=False)
        peer.send_close(1001)
        assert (await peer.close_seen()) == (1001, "")
    await recorder.ended()
    assert (recorder.messages, recorder.client.close_code) == ([], 1001)


async def test_what_is_queued_can_be_read_after_the_close(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        for number in range(5):
            peer.send_text(str(number))
        peer.send_close(1000)
        await peer.close_seen()
    await client.wait_closed()
    assert [(await client.recv()).as_text() for _ in range(5)] == list("01234")
    assert await client.recv() is None


@pytest.mark.parametrize("half", [b"", encode(TEXT, "half a frame")[:8], encode(TEXT, "half", fin=False)], ids=len)
@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_the_peer_vanishes(stack: Stack, how: str, half: bytes) -> None:
    recorder = Recorder()
    server = await serve(stack, recorder)
    async with await RawPeer.open(server.port) as peer:
        client = await recorder.connected()
        peer.send_text("last words")
        peer.send(half)
        await until(lambda: recorder.messages)
        if how == "reset":
            peer.reset()
        else:
            peer.writer.close()
        await recorder.ended()
    assert (client.close_code, client.close_reason) == (1006, "")
    assert recorder.error is not None
    assert (recorder.error.code, recorder.error.by, recorder.error.clean) == (1006, "transport", False)
    assert recorder.messages == ["last words"]
    with pytest.raises(ConnectionClosed):
        await client.send("x")
    with pytest.raises(ConnectionClosed):
        await client.ping()
    await client.close()  # of something closed: nothing to do
    assert server.connection_count == 0


# --- the server closes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "away"), (4000, "é" * 61 + "x"), (3000, "💥")])
async def test_the_server_closes(stack: Stack, code: int, reason: str) -> None:
    held = Held()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        await client.send("before")
        closing = asyncio.create_task(client.close(code, reason))
        assert await peer.frame() == Wire(TEXT, b"before")
        assert await peer.close_seen() == (code, reason)
        assert client.state is State.CLOSING
        assert not client.is_connected
        assert client.close_code is None
        peer.send_close(code, reason)
        await closing
        await peer.closed()
    assert (client.close_code, client.close_reason) == (code, reason)
    assert client.state is State.CLOSED
    assert await client.recv() is None


@pytest.mark.parametrize(
    ("answer", "code", "reason"),
    [
        (close_frame(4000), 4000, ""),
        (close_frame(1001, "so am I"), 1001, "so am I"),
        (close_frame(None), 1005, ""),
    ],
)
async def test_how_a_close_is_answered(stack: Stack, answer: bytes, code: int, reason: str) -> None:
    """The connection's close code is the one received (RFC 6455 §7.1.5), whoever began."""
    held = Held()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        closing = asyncio.create_task(client.close(4000, "mine"))
        assert await peer.close_seen() == (4000, "mine")
        peer.send(answer)
        await closing
        await peer.closed()
    assert (client.close_code, client.close_reason) == (code, reason)
    assert await client.recv() is None  # what was asked for is no error, whatever the answer


@pytest.mark.parametrize("answer", [encode(CLOSE, b"\x03"), close_frame(1006), close_frame(1000, b"\xff"), encode(3)])
async def test_a_close_answered_with_nonsense(stack: Stack, answer: bytes) -> None:
    held = Held()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        closing = asyncio.create_task(client.close(4000, "mine"))
        await peer.close_seen()
        peer.send(answer)
        await closing
        with contextlib.suppress(ConnectionError):
            await peer.closed()  # nothing more is said after a close frame
    assert client.close_code == 1006
    assert await client.recv() is None


async def test_both_close_at_once(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        peer.send_close(4001, "theirs")  # on its way while the server closes
        await client.close(4002, "ours")
        assert await peer.close_seen() == (4002, "ours")
        await peer.closed()  # one close frame each
    assert (client.close_code, client.close_reason) == (4001, "theirs")
    assert await client.recv() is None


async def test_messages_between_our_close_and_the_answer(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        closing = asyncio.create_task(client.close())
        await peer.close_seen()
        peer.send_text("on its way")
        peer.send_frame(PING, "RFC 6455 §5.5.2: unless a Close frame was received")
        assert (await peer.frame()).opcode == PONG
        peer.send_close(1000)
        await closing
    message = await client.recv()
    assert message is not None
    assert message.as_text() == "on its way"
    assert await client.recv() is None


async def test_a_peer_that_never_answers(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, close_timeout=0.1)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        begun = time.monotonic()
        await client.close(4000, "mine")
        assert time.monotonic() - begun > 0.05
        assert await peer.close_seen() == (4000, "mine")
    assert (client.close_code, client.close_reason) == (1006, "")


async def test_a_peer_that_answers_and_does_not_hang_up(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, close_timeout=30)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        closing = asyncio.create_task(client.close())
        await peer.close_seen()
        peer.send_close(1000)
        await closing
        await peer.closed()
    assert client.close_code == 1000


@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_a_peer_that_vanishes_instead_of_answering(stack: Stack, how: str) -> None:
    held = Held()
    server = await serve(stack, held, close_timeout=30)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        closing = asyncio.create_task(client.close())
        await peer.close_seen()
        peer.reset() if how == "reset" else peer.writer.close()
        await closing
    assert client.close_code == 1006
    assert await client.recv() is None


async def test_a_peer_that_floods_instead_of_answering(stack: Stack) -> None:
    """Nobody reads any more: what comes is bounded in memory, and by the close timeout in time."""
    held = Held()
    server = await serve(stack, held, close_timeout=0.5, buffer_size=10)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        closing = asyncio.create_task(client.close())
        await peer.close_seen()
        block = encode(BINARY, b"x" * 10_000) * 10
        tracemalloc.start()
        try:
            with contextlib.suppress(ConnectionError):
                while not closing.done():
                    peer.send(block)
                    await peer.writer.drain()
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        await closing
    assert client.queued <= 20
    assert most < 3_000_000
    assert client.close_code == 1006


async def test_a_peer_that_pauses_reading_when_we_close(stack: Stack) -> None:
    """Our close frame stands behind megabytes that it does not take."""
    held = Held()
    server = await serve(stack, held, close_timeout=0.2)
    async with await RawPeer.open(server.port, receive_buffer=4096):
        client = await held.next()
        for _ in range(100):
            client.send_nowait(b"x" * 100_000)
        await client.close()
    assert client.close_code == 1006


@pytest.mark.parametrize("returns", ["", "raises"])
async def test_a_handler_that_ends_closes(stack: Stack, returns: str, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(client: Any) -> None:
        await client.send("hello")
        if returns:
            raise LookupError("secret")

    server = await serve(stack, handler)
    async with await RawPeer.open(server.port) as peer:
        assert await peer.payload() == b"hello"
        code, reason = await peer.close_seen()
        assert code == (1011 if returns else 1000)
        assert "secret" not in reason
        peer.send_close(code)
        await peer.closed()
    assert [record.levelname for record in caplog.records] == (["ERROR"] if returns else [])


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, "1000", None, 1000.0])
async def test_codes_that_close_does_not_send(stack: Stack, code: Any) -> None:
    """picows (Protocol): any code is sent, and a reason beyond 125 bytes of payload."""
    held = Held()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port):
        client = await held.next()
        with pytest.raises((ValueError, TypeError)):
            await client.close(code)
        with pytest.raises(ValueError, match="reason"):
            await client.close(1000, "é" * 62)
        assert client.is_connected
