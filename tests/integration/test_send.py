"""Sending: from several tasks, in parts, to a peer that does not read, and cancelled at every stage.

Whatever happens, what arrives is whole messages in the order in which they were accepted, each once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from fabric.config import BackpressureConfig
from fabric.error import BackpressureTimeout, BufferFull, ConnectionClosed, InvalidState, Utf8Error
from fabric.message import Message
from fabric.server import ConnectedClient
from fabric_ext.protocol import State
from support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Wire
from support.raw_peer import RawPeer
from support.serving import Held, echo, serve, turns, until

Stack = contextlib.AsyncExitStack

SLOW = 4096  # bytes of receive buffer: a peer that soon holds the sender up


async def pair(stack: Stack, *, receive_buffer: int | None = None, **options: Any) -> tuple[ConnectedClient, RawPeer]:
    """A connection as the server has it, and its raw peer."""
    held = Held()
    server = await serve(stack, held, **options)
    peer = await stack.enter_async_context(await RawPeer.open(server.port, receive_buffer=receive_buffer))
    return await held.next(), peer


def fill(client: ConnectedClient, size: int = 100_000) -> list[bytes]:
    """Send until the transport takes no more; what was sent."""
    sent: list[bytes] = []
    while not client._is_blocked:
        sent.append(b"%06d" % len(sent) + b"x" * size)
        client.send_nowait(sent[-1])
    return sent


async def drain(peer: RawPeer, count: int) -> list[bytes]:
    return [await peer.payload() for _ in range(count)]


# --- what can be sent --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        ("", Wire(TEXT, b"")),
        ("é日💥", Wire(TEXT, "é日💥".encode())),
        (b"", Wire(BINARY, b"")),
        (b"\x00\xff", Wire(BINARY, b"\x00\xff")),
        (bytearray(b"abc"), Wire(BINARY, b"abc")),
        (memoryview(b"abcd")[1:3], Wire(BINARY, b"bc")),
        (memoryview(b"abcdefgh").cast("I"), Wire(BINARY, b"abcdefgh")),
        (memoryview(b"abcdefgh")[::2], Wire(BINARY, b"aceg")),
        (Message("text"), Wire(TEXT, b"text")),
        (Message(b"binary"), Wire(BINARY, b"binary")),
        (Message.json({"a": [1, None]}), Wire(TEXT, b'{"a":[1,null]}')),
    ],
)
@pytest.mark.parametrize("blocked", [False, True], ids=["at once", "later"])
async def test_what_can_be_sent(stack: Stack, message: Any, wire: Wire, blocked: bool) -> None:
    client, peer = await pair(stack, receive_buffer=SLOW if blocked else None)
    before = fill(client) if blocked else []
    await client.send(message)
    client.send_nowait(message)
    assert await drain(peer, len(before)) == before
    assert [await peer.frame(), await peer.frame()] == [wire, wire]


async def test_the_forms_with_a_type(stack: Stack) -> None:
    client, peer = await pair(stack)
    await client.send_text("t")
    await client.send_binary(b"b")
    await client.send_json([1])
    assert [await peer.frame() for _ in range(3)] == [
        Wire(TEXT, b"t"),
        Wire(BINARY, b"b"),
        Wire(TEXT, b"[1]"),
    ]
    with pytest.raises(TypeError):
        await client.send_text(b"b")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await client.send_binary("t")  # type: ignore[arg-type]


@pytest.mark.parametrize("blocked", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize(
    "wrong",
    [
        None,
        1,
        1.5,
        {"a": 1},
        object(),
        Message.ping(b"x"),
        Message.close(1000),
        "\ud800",
    ],
    ids=str,
)
async def test_what_cannot_be_sent(stack: Stack, wrong: Any, blocked: bool) -> None:
    client, peer = await pair(stack, receive_buffer=SLOW if blocked else None)
    before = fill(client) if blocked else []
    expected = Utf8Error if isinstance(wrong, str) else TypeError  # whether it is sent at once or later
    with pytest.raises(expected):
        await client.send(wrong)
    with pytest.raises(expected):
        client.send_nowait(wrong)
    with pytest.raises((TypeError, ValueError)):
        await client.send_parts([wrong])
    assert await drain(peer, len(before)) == before
    await client.send("still whole")
    assert await peer.frame() == Wire(TEXT, b"still whole")


@pytest.mark.parametrize("blocked", [False, True], ids=["at once", "later"])
async def test_a_list_is_not_taken_for_the_parts_of_a_message(stack: Stack, blocked: bool) -> None:
    client, peer = await pair(stack, receive_buffer=SLOW if blocked else None)
    before = fill(client) if blocked else []
    for wrong in (["a", "b"], ("a",), [], {"a": 1}):
        with pytest.raises(TypeError, match=r"send_parts\(\).*send_many\(\)"):
            await client.send(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"send_parts\(\).*send_many\(\)"):
            client.send_nowait(wrong)  # type: ignore[arg-type]
    assert await drain(peer, len(before)) == before
    await client.send("still whole")
    assert await peer.frame() == Wire(TEXT, b"still whole")


@pytest.mark.parametrize("blocked", [False, True], ids=["at once", "later"])
async def test_a_buffer_may_change_once_send_has_returned(stack: Stack, blocked: bool) -> None:
    client, peer = await pair(stack, receive_buffer=SLOW if blocked else None)
    before = fill(client) if blocked else []
    for size in (10, 10_000, 100_000):
        buffer = bytearray(b"a" * size)
        await client.send(buffer)
        buffer[:] = b"b" * size
        client.send_nowait(memoryview(buffer))
        buffer[:] = b"c" * size
        buffer.clear()  # nothing holds on to it
    assert await drain(peer, len(before)) == before
    for size in (10, 10_000, 100_000):
        assert await drain(peer, 2) == [b"a" * size, b"b" * size]


async def test_what_send_returns_is_an_awaitable_for_everything(stack: Stack) -> None:
    client, peer = await pair(stack)
    assert await client.send("1") is None
    assert await asyncio.create_task(client.send("2")) is None
    assert await asyncio.wait_for(client.send("3"), 20) is None
    assert await asyncio.gather(client.send("4"), client.send("5")) == [None, None]
    assert await asyncio.shield(client.send("6")) is None
    async with asyncio.TaskGroup() as group:
        group.create_task(client.send("7"))
        group.create_task(client.send("8"))
    await asyncio.wait({asyncio.create_task(client.send("9"))})
    with pytest.warns(RuntimeWarning, match="never awaited"):
        client.send("lost")  # it begins when it is awaited
    await client.send("10")
    assert [(await peer.payload()).decode() for _ in range(10)] == [str(number) for number in range(1, 11)]


# --- in parts ----------------------------------------------------------------------------------------------


async def letters(text: str, gate: asyncio.Event | None = None) -> AsyncIterator[str]:
    """The letters of `text`; after the first two `gate` must be set."""
    for number, letter in enumerate(text):
        if number == 2 and gate is not None:
            await gate.wait()
        yield letter


async def test_iterables_go_out_as_one_message(stack: Stack) -> None:
    client, peer = await pair(stack)
    for send, parts in (
        (client.send_parts, ["a", "b", "c"]),
        (client.send_parts, ("a", Message("b"), "c")),
        (client.send, iter("abc")),
        (client.send, letters("abc")),
        (client.send, (c for c in "abc")),
    ):
        await send(parts)
        assert [await peer.frame() for _ in range(3)] == [
            Wire(TEXT, b"a", fin=False),
            Wire(CONTINUATION, b"b", fin=False),
            Wire(CONTINUATION, b"c"),
        ]
    await client.send_parts([b"x", bytearray(b"y")])
    assert [await peer.frame(), await peer.frame()] == [
        Wire(BINARY, b"x", fin=False),
        Wire(CONTINUATION, b"y"),
    ]
    await client.send_parts(["one"])
    assert await peer.frame() == Wire(TEXT, b"one")
    await client.send_parts([])  # no parts, no message
    await client.send_parts([""])
    assert await peer.frame() == Wire(TEXT, b"")


async def test_parts_that_are_larger_than_a_fragment_are_split(stack: Stack) -> None:
    client, peer = await pair(stack, fragment_size=10)
    await client.send_parts([b"a" * 25, b"b" * 10, b"c"])
    frames = [await peer.frame() for _ in range(5)]
    assert [frame.payload for frame in frames] == [b"a" * 10, b"a" * 10, b"a" * 5, b"b" * 10, b"c"]
    assert [frame.opcode for frame in frames] == [BINARY] + [CONTINUATION] * 4
    assert [frame.fin for frame in frames] == [False] * 4 + [True]


async def test_other_senders_wait_for_the_end_of_a_message_in_parts(stack: Stack) -> None:
    """RFC 6455 §5.4: fragments of two messages MUST NOT be interleaved; control frames may come between."""
    client, peer = await pair(stack)
    gate = asyncio.Event()
    parts = asyncio.create_task(client.send(letters("abcd", gate)))
    assert await peer.frame() == Wire(TEXT, b"a", fin=False)
    other = asyncio.create_task(client.send("other"))
    more_parts = asyncio.create_task(client.send_parts(["x", "y"]))
    client.send_nowait("nowait")
    pinging = asyncio.create_task(client.ping(b"p"))
    assert await peer.frame() == Wire(PING, b"p")
    peer.send_frame(PONG, b"p")
    peer.send_frame(PING, b"q")
    assert await peer.frame() == Wire(PONG, b"q")
    await pinging
    gate.set()
    await asyncio.gather(parts, other, more_parts)
    frames = [await peer.frame() for _ in range(7)]
    assert frames[:3] == [Wire(CONTINUATION, letter, fin=letter == b"d") for letter in (b"b", b"c", b"d")]
    rest = frames[3:]
    assert rest.index(Wire(TEXT, b"x", fin=False)) + 1 == rest.index(Wire(CONTINUATION, b"y"))
    assert {wire.payload for wire in rest} == {b"other", b"nowait", b"x", b"y"}


@pytest.mark.parametrize("wrong", [["a", b"b"], [b"a", "b"], ["a", 1], ["a", Message.ping()]])
async def test_parts_that_do_not_belong_together(stack: Stack, wrong: Any) -> None:
    client, peer = await pair(stack)
    with pytest.raises(TypeError):
        await client.send_parts(wrong)
    await client.send("fine")  # nothing was out yet
    assert await peer.frame() == Wire(TEXT, b"fine")


async def test_an_iterable_that_raises_before_anything_is_out(stack: Stack) -> None:
    client, peer = await pair(stack)

    def broken() -> Any:
        yield "held back until the next one is there"
        raise LookupError

    with pytest.raises(LookupError):
        await client.send(broken())
    await client.send("fine")
    assert await peer.frame() == Wire(TEXT, b"fine")


@pytest.mark.parametrize("how", ["raises", "cancelled", "wrong type"])
async def test_half_a_message_cannot_be_taken_back(stack: Stack, how: str) -> None:
    """The connection is closed: what was begun can be neither finished nor followed by anything else."""
    client, peer = await pair(stack)

    async def broken() -> AsyncIterator[Any]:
        yield "a"
        yield "b"
        if how == "raises":
            raise LookupError
        if how == "wrong type":
            yield 3
        await asyncio.Event().wait()

    task = asyncio.create_task(client.send(broken()))
    assert await peer.frame() == Wire(TEXT, b"a", fin=False)
    if how == "cancelled":
        client.send_nowait("never")
        task.cancel()
    with pytest.raises((LookupError, asyncio.CancelledError, TypeError)):
        await task
    code, _ = await peer.close_seen()
    assert code == 1011
    peer.send_close(1011)
    await peer.closed()
    await client.wait_closed()
    assert [message.as_text() for message in client.undelivered] == ["never"] * (how == "cancelled")


async def test_close_waits_for_what_waits_for_a_message_in_parts(stack: Stack) -> None:
    client, peer = await pair(stack, close_timeout=60)
    gate = asyncio.Event()
    parts = asyncio.create_task(client.send(letters("abc", gate)))
    await peer.frame()
    await client.send("behind it")
    closing = asyncio.create_task(client.close(4000, "done"))
    await turns()
    gate.set()
    await parts
    assert [(await peer.frame()).payload for _ in range(3)] == [b"b", b"c", b"behind it"]
    assert await peer.close_seen() == (4000, "done")
    peer.send_close(4000)
    await closing
    assert client.close_code == 4000


async def test_a_message_in_parts_to_a_peer_that_does_not_read(stack: Stack) -> None:
    client, peer = await pair(stack, receive_buffer=SLOW)
    sent = [bytes([number]) * 100_000 for number in range(60)]
    task = asyncio.create_task(client.send(iter(sent)))
    await until(lambda: client._is_blocked)
    await turns()
    assert not task.done(), "60 parts of 100 KB are somewhere in memory"
    received = b"".join([(await peer.frame()).payload for _ in sent])
    await task
    assert received == b"".join(sent)


# --- several tasks -----------------------------------------------------------------------------------------


async def test_many_tasks_send_at_once_and_nothing_is_torn(stack: Stack) -> None:
    client, peer = await pair(stack, receive_buffer=SLOW)

    async def work(name: int) -> None:
        for number in range(20):
            payload = f"{name}:{number}:" + "x" * (1 if number % 2 else 30_000)
            if number % 5 == 4:
                await client.send(payload[at : at + 10_000] for at in range(0, len(payload), 10_000))
            else:
                await client.send(payload)

    tasks = [asyncio.create_task(work(name)) for name in range(10)]
    seen: list[list[int]] = [[] for _ in tasks]
    for _ in range(200):
        text = ""
        while True:
            wire = await peer.frame()
            assert (wire.opcode == CONTINUATION) == bool(text)
            text += wire.payload.decode()
            if wire.fin:
                break
        name, number, filler = text.split(":")
        assert filler == "x" * (1 if int(number) % 2 else 30_000)
        seen[int(name)].append(int(number))
    await asyncio.gather(*tasks)
    assert seen == [list(range(20))] * 10


@pytest.mark.parametrize("size", [5_000_000])
async def test_big_messages_both_ways_with_a_slow_reader(stack: Stack, size: int) -> None:
    server = await serve(stack, echo, backpressure=BackpressureConfig(max_buffer_bytes=8_000_000))
    async with await RawPeer.open(server.port, receive_buffer=SLOW) as peer:
        payloads = [bytes([number]) * size for number in range(4)]

        async def feed() -> None:
            for payload in payloads:
                peer.send_binary(payload)
                await peer.writer.drain()

        feeding = asyncio.create_task(feed())
        for payload in payloads:
            await asyncio.sleep(0.01)
            assert await peer.payload() == payload
        await feeding


# --- the outbox --------------------------------------------------------------------------------------------


async def test_send_waits_past_the_threshold_and_goes_on_after_recovery(stack: Stack) -> None:
    config = BackpressureConfig(max_buffer_size=10, backpressure_threshold=0.5, recovery_threshold=0.2)
    client, peer = await pair(stack, receive_buffer=SLOW, backpressure=config)
    sent = fill(client)
    for number in range(5):
        sent.append(b"queued %d" % number)
        await asyncio.wait_for(client.send(sent[-1]), 20)
    waiting = asyncio.create_task(client.send(b"waited"))
    await turns()
    assert not waiting.done()
    assert await drain(peer, len(sent) + 1) == [*sent, b"waited"]
    await waiting
    assert client.backpressure.messages == client.backpressure.bytes == 0


async def test_send_nowait_fills_the_buffer_and_then_refuses(stack: Stack) -> None:
    client, peer = await pair(stack, receive_buffer=SLOW, backpressure=BackpressureConfig(max_buffer_size=10))
    sent = fill(client)
    with pytest.raises(BufferFull) as caught:
        for number in range(20):
            client.send_nowait(b"%d" % number)
            sent.append(b"%d" % number)
    assert (caught.value.size, caught.value.limit) == (10, 10)
    assert await drain(peer, len(sent)) == sent
    client.send_nowait(b"again")
    assert await peer.payload() == b"again"


async def test_bytes_bound_the_buffer_too(stack: Stack) -> None:
    config = BackpressureConfig(max_buffer_bytes=100_000)
    client, peer = await pair(stack, receive_buffer=SLOW, backpressure=config)
    sent = fill(client)
    text = "💥" + "a" * 996  # 1000 bytes of UTF-8, four times that in memory
    with pytest.raises(BufferFull, match="bytes"):
        while True:
            client.send_nowait(text)
            sent.append(text.encode())
    assert client.backpressure.bytes == 100_000
    assert await drain(peer, len(sent)) == sent
    await until(lambda: client.backpressure.bytes == 0)


async def test_a_send_that_waits_too_long(stack: Stack) -> None:
    config = BackpressureConfig(max_buffer_size=4, timeout=0.05)
    client, peer = await pair(stack, receive_buffer=SLOW, backpressure=config)
    sent = fill(client)
    with pytest.raises(BackpressureTimeout):
        while True:
            await client.send(b"one more")
            sent.append(b"one more")
    assert await drain(peer, len(sent)) == sent
    await client.send(b"after")
    assert await peer.payload() == b"after"


async def test_a_sender_without_backpressure(stack: Stack) -> None:
    config = BackpressureConfig(enabled=False, max_buffer_size=4)
    client, _ = await pair(stack, receive_buffer=SLOW, backpressure=config)
    fill(client)
    with pytest.raises(BufferFull):
        while True:
            await client.send(b"one more")


# --- cancellation ------------------------------------------------------------------------------------------


async def test_a_cancelled_send_is_sent_whole_or_not_at_all(stack: Stack) -> None:
    config = BackpressureConfig(max_buffer_size=5)
    client, peer = await pair(stack, receive_buffer=SLOW, backpressure=config)
    sent = fill(client)
    accepted: list[bytes] = []

    async def send(payload: bytes) -> None:
        await client.send(payload)
        accepted.append(payload)

    tasks = [asyncio.create_task(send(b"task %d" % number)) for number in range(30)]
    await turns()
    for task in tasks[::3]:
        task.cancel()
    reading = asyncio.create_task(drain(peer, len(sent)))
    await asyncio.sleep(0)
    for task in tasks[1::3]:
        task.cancel()
    assert await reading == sent
    await asyncio.gather(*tasks, return_exceptions=True)
    client.send_nowait(b"last")
    got = []
    while (payload := await peer.payload()) != b"last":
        got.append(payload)
    assert got == accepted
    assert set(got) >= {b"task %d" % number for number in range(2, 30, 3)}
    assert client.backpressure.messages == client.backpressure.bytes == client.backpressure.waiting == 0


async def test_a_cancelled_recv_loses_nothing(stack: Stack) -> None:
    client, peer = await pair(stack)
    got: list[int] = []

    async def receive() -> None:
        while True:
            message = await client.recv()
            assert message is not None
            got.append(int(message.as_text()))

    for number in range(300):
        peer.send_text(str(number))
        task = asyncio.create_task(receive())
        for _ in range(number % 4):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    last = asyncio.create_task(receive())
    await until(lambda: len(got) == 300)
    last.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await last
    assert got == list(range(300))


async def test_a_cancelled_ping(stack: Stack) -> None:
    client, peer = await pair(stack)
    task = asyncio.create_task(client.ping(b"a"))
    assert await peer.frame() == Wire(PING, b"a")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    peer.send_frame(PONG, b"a")  # nobody waits for it any more
    again = asyncio.create_task(client.ping(b"a"))
    assert await peer.frame() == Wire(PING, b"a")
    peer.send_frame(PONG, b"a")
    assert await again > 0


@pytest.mark.parametrize("stage", ["before the first step", "while the outbox drains", "while the peer is awaited"])
async def test_a_cancelled_close_goes_on_once_it_has_begun(stack: Stack, stage: str) -> None:
    """Before, it is as if it had not been called."""
    client, peer = await pair(stack, receive_buffer=SLOW)
    sent = []
    if stage == "while the outbox drains":
        sent = [*fill(client), b"queued"]
        client.send_nowait(b"queued")
    task = asyncio.create_task(client.close(4000, "bye"))
    if stage != "before the first step":
        await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if stage != "while the peer is awaited":
        assert client.is_connected
        assert await drain(peer, len(sent)) == sent
        await client.send("usable")
        assert await peer.payload() == b"usable"
        return
    assert await peer.close_seen() == (4000, "bye")
    peer.send_close(4000)
    await client.wait_closed()
    assert client.close_code == 4000


async def test_a_cancelled_wait_closed(stack: Stack) -> None:
    client, peer = await pair(stack)
    tasks = [asyncio.create_task(client.wait_closed()) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    peer.reset()
    await asyncio.gather(*tasks[1:])
    await client.wait_closed()


# --- the end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["closing", "closed", "lost"])
async def test_sending_after_the_end(stack: Stack, stage: str) -> None:
    """picows (Protocol): sends after close are silently dropped."""
    client, peer = await pair(stack)
    closing = None
    if stage == "lost":
        peer.reset()
        await client.wait_closed()
    else:
        closing = asyncio.create_task(client.close(4000, "mine"))
        await peer.close_seen()
        if stage == "closed":
            peer.send_close(4000, "theirs")
            await closing
    attempts = [
        client.ping,
        *(partial(client.send, message) for message in ("x", letters("abc"))),
        partial(client.send_parts, ["x", "y"]),
    ]
    for attempt in attempts:
        with pytest.raises(ConnectionClosed) as caught:
            await attempt()
        assert caught.value.code == {"closing": 4000, "closed": 4000, "lost": 1006}[stage]
    with pytest.raises(ConnectionClosed):
        client.send_nowait("x")
    if closing is not None and stage == "closing":
        peer.send_close(4000)
        await closing
    await client.close()
    assert client.state is State.CLOSED
    assert client.messages_sent == 0


@pytest.mark.parametrize("how", ["reset", "close", "our close"])
async def test_everybody_who_waits_learns_of_the_end(stack: Stack, how: str) -> None:
    config = BackpressureConfig(max_buffer_size=4)
    client, peer = await pair(stack, receive_buffer=SLOW, backpressure=config, close_timeout=0.1)
    pinging = asyncio.create_task(client.ping())
    await asyncio.sleep(0)
    sent = fill(client)
    waiting = [
        pinging,
        asyncio.create_task(client.ping()),
        *(asyncio.create_task(client.send(b"%d" % number)) for number in range(8)),
        asyncio.create_task(client.send_parts(["a", "b"])),
        asyncio.create_task(client.send(letters("abc"))),
    ]
    receiving = asyncio.create_task(client.recv())
    closed = asyncio.create_task(client.wait_closed())
    await turns()
    if how == "reset":
        peer.reset()
    elif how == "close":
        peer.send_close(4001)
    else:
        await client.close(4002)
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
    with contextlib.suppress(ConnectionClosed):
        await receiving
    await closed
    accepted = [result for result in results if result is None]
    assert all(isinstance(result, ConnectionClosed) for result in results if result is not None), results
    cut_off, *kept = client.undelivered
    assert cut_off.as_bytes() == sent[-1]  # of which the system has taken a part
    assert len(accepted) == len(kept)
    assert len(accepted) <= 4


async def test_what_cannot_be_said_in_a_ping_or_a_close_frame(stack: Stack) -> None:
    client, peer = await pair(stack)
    for data in (5, ["x"], 1.5):
        with pytest.raises(TypeError, match="data of a ping"):
            await client.ping(data)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 125"):
        await client.ping("x" * 126)
    for code in (5, 1004, 1005, 1006, 1015, 2999, 5000, "1000", None):
        with pytest.raises(ValueError, match="close code"):
            await client.close(code)  # type: ignore[arg-type]
    for reason in (5, b"bye", None):
        with pytest.raises(TypeError, match="close reason"):
            await client.close(1000, reason)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 123"):
        await client.close(1000, "é" * 62)
    await client.send("still open")
    assert await peer.payload() == b"still open"


async def test_two_pings_with_the_same_data(stack: Stack) -> None:
    """picows (Protocol): outgoing control payloads have no limit of 125 bytes."""
    client, peer = await pair(stack)
    first = asyncio.create_task(client.ping("same"))
    await peer.frame()
    with pytest.raises(InvalidState):
        await client.ping(b"same")
    peer.send_frame(PONG, "same")
    await first
    with pytest.raises(ValueError, match="125"):
        await client.ping(b"x" * 126)


async def test_a_pong_answers_the_pings_before_it_too(stack: Stack) -> None:
    """picows (Resources): its automatic ping takes any PONG for an answer."""
    client, peer = await pair(stack)
    pings = [asyncio.create_task(client.ping(name)) for name in (b"1", b"2", b"3")]
    for _ in pings:
        await peer.frame()
    peer.send_frame(PONG, "unknown")
    peer.send_frame(PONG, "2")
    times = await asyncio.gather(*pings[:2])
    assert times[0] >= times[1] > 0
    assert not pings[2].done()
    peer.send_frame(PONG, "3")
    assert client.latency is not None
    assert await pings[2] == client.latency


async def test_a_handler_may_close_from_where_it_is_resumed(stack: Stack) -> None:
    """Inside the frame callback, with more frames of the same read to come."""

    async def handler(client: ConnectedClient) -> None:
        message = await client.recv()
        assert message is not None
        await client.send(message)
        await client.close(4000, "enough")

    server = await serve(stack, handler)
    async with await RawPeer.open(server.port) as peer:
        for _ in range(5):
            peer.send_text("x")
        assert await peer.frame() == Wire(TEXT, b"x")
        wire = await peer.frame()
        assert (wire.opcode, wire.close_code) == (CLOSE, 4000)
        peer.send_close(4000)
        await peer.closed()


async def test_a_later_send_does_not_overtake_those_that_wait_for_room(stack: Stack) -> None:
    limits = BackpressureConfig(max_buffer_size=5)
    client, peer = await pair(stack, receive_buffer=SLOW, backpressure=limits, compression=None)
    before = fill(client)
    tasks = [asyncio.create_task(client.send(b"%d" % number)) for number in range(20)]
    await until(lambda: client.backpressure.waiting > 0)

    late: list[Any] = []

    def send_late() -> None:
        late.append(client.send(b"late"))  # writes at once if it may

    def room(active: bool) -> None:
        """Some of those that wait are being let in; they have not run when `send_late` does."""
        if not active:
            forget()
            asyncio.get_running_loop().call_soon(send_late)

    forget = client.backpressure.on_state_change(room)
    await drain(peer, len(before))
    sending = asyncio.gather(*tasks)
    await until(lambda: bool(late))
    await late[0]
    arrived = await drain(peer, 21)
    await sending
    assert arrived == [*(b"%d" % number for number in range(20)), b"late"]
