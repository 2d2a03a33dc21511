"""One message to everybody: who gets it, and that a slow peer costs the others nothing."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import BackpressureConfig, CompressionConfig
from fabric.message import Message
from fabric.server import ConnectedClient, WebSocketServer
from support.frames import BINARY, CONTINUATION, TEXT, Wire
from support.raw_peer import RawPeer
from support.serving import Held, serve, turns, until

Stack = contextlib.AsyncExitStack

SMALL = BackpressureConfig(max_buffer_size=4)


async def crowd(stack: Stack, server: WebSocketServer, count: int) -> list[RawPeer]:
    return [await stack.enter_async_context(await RawPeer.open(server.port)) for _ in range(count)]


async def slow_peer(stack: Stack, server: WebSocketServer, held: Held) -> tuple[ConnectedClient, RawPeer, int]:
    """A peer that does not read, with its outbox full; how many messages it has been sent."""
    peer = await stack.enter_async_context(await RawPeer.open(server.port, receive_buffer=4096))
    client = await held.next()
    count = 0
    while client.backpressure.messages < SMALL.max_buffer_size:
        client.send_nowait(b"x" * 100_000)
        count += 1
    return client, peer, count


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        ("text é", Wire(TEXT, "text é".encode())),
        ("", Wire(TEXT, b"")),
        (b"binary", Wire(BINARY, b"binary")),
        (bytearray(b"x" * 200), Wire(BINARY, b"x" * 200)),
        (memoryview(b"abc"), Wire(BINARY, b"abc")),
        (Message.json([1]), Wire(TEXT, b"[1]")),
        ("x" * 70_000, Wire(TEXT, b"x" * 70_000)),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_everybody_gets_it(stack: Stack, message: Any, wire: Wire) -> None:
    server = await serve(stack, Held())
    peers = await crowd(stack, server, 5)
    assert await server.broadcast(message) == 5
    assert [await peer.frame() for peer in peers] == [wire] * 5


@pytest.mark.parametrize("place", ["first", "last"])
async def test_it_goes_to_connections_of_a_server(stack: Stack, place: str) -> None:
    """Not to a client's end, whose frames have to be masked, nor to what is no connection; then nobody gets it."""
    held = Held()
    server = await serve(stack, held)
    client = await stack.enter_async_context(WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/"))
    connection = await held.next()
    for wrong in (client, None, 1, object()):
        to: list[Any] = [connection, wrong] if place == "last" else [wrong, connection]
        with pytest.raises(TypeError, match=f"to holds a {type(wrong).__name__}"):
            await server.broadcast("x", to=to)
    assert await server.broadcast("y", to=[connection]) == 1
    assert await client.recv() == "y"
    await client.send("z")
    assert await connection.recv() == "z"
    held.release()


async def test_some_get_it_and_others_do_not(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    peers = await crowd(stack, server, 3)
    one, two, three = [await held.next() for _ in peers]
    assert await server.broadcast("a", to=[one, two]) == 2
    assert await server.broadcast("b", exclude=one) == 2
    assert await server.broadcast("c", exclude=[one, two]) == 1
    assert await server.broadcast("d", to=iter([one, three]), exclude={three}) == 1
    assert await server.broadcast("e", to=[]) == 0
    assert await server.broadcast("end") == 3
    got: list[list[bytes]] = []
    for peer in peers:
        got.append([])
        while got[-1][-1:] != [b"end"]:
            got[-1].append(await peer.payload())
    # In whichever order they were accepted.
    assert sorted(got) == sorted([[b"a", b"d", b"end"], [b"a", b"b", b"end"], [b"b", b"c", b"end"]])


async def test_the_forms_with_a_type(stack: Stack) -> None:
    server = await serve(stack, Held())
    (peer,) = await crowd(stack, server, 1)
    assert await server.broadcast_text("t") == await server.broadcast_binary(b"b") == 1
    assert await server.broadcast_json({"a": 1}) == 1
    assert [await peer.frame() for _ in range(3)] == [
        Wire(TEXT, b"t"),
        Wire(BINARY, b"b"),
        Wire(TEXT, b'{"a":1}'),
    ]


async def test_nobody_is_there(stack: Stack) -> None:
    server = await serve(stack, Held())
    assert await server.broadcast("x") == 0


@pytest.mark.parametrize(
    "wrong", [None, 1, ["a"], {"a": 1}, Message.ping(), Message.pong(), Message.close(1000)], ids=str
)
async def test_what_cannot_be_broadcast(stack: Stack, wrong: Any) -> None:
    server = await serve(stack, Held())
    (peer,) = await crowd(stack, server, 1)
    with pytest.raises((TypeError, ValueError)):
        await server.broadcast(wrong)
    assert await server.broadcast("fine") == 1
    assert await peer.frame() == Wire(TEXT, b"fine")


async def test_order_with_other_messages_of_a_connection(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    peer = await stack.enter_async_context(await RawPeer.open(server.port, receive_buffer=4096))
    client = await held.next()
    sent = []
    number = 0
    while client._outbox_size < 20:
        number += 1
        for payload in (b"own %d " % number + b"x" * 30_000, b"all %d" % number):
            sent.append(payload)
            if payload.startswith(b"own"):
                client.send_nowait(payload)
            else:
                assert await server.broadcast(payload) == 1
    assert client._outbox_size
    assert [await peer.payload() for _ in sent] == sent


async def test_while_a_message_in_parts_is_under_way(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    (peer,) = await crowd(stack, server, 1)
    client = await held.next()
    gate = asyncio.Event()

    async def parts() -> Any:
        yield "a"
        yield "b"
        await gate.wait()
        yield "c"

    sending = asyncio.create_task(client.send(parts()))
    assert (await peer.frame()).payload == b"a"
    assert await server.broadcast("all") == 1
    gate.set()
    await sending
    assert [(await peer.frame()).payload for _ in range(3)] == [b"b", b"c", b"all"]


async def test_who_comes_and_goes_meanwhile(stack: Stack) -> None:
    """on_disconnect broadcasts, and a client that closes is no longer reached."""
    held = Held()
    server = await serve(stack, held, on_disconnect=lambda _: server.broadcast("gone"))
    peers = await crowd(stack, server, 3)
    clients = [await held.next() for _ in peers]
    closing = asyncio.create_task(clients[0].close())
    await asyncio.sleep(0)
    assert await server.broadcast("x") == 2
    peers[0].send_close()
    await closing
    assert [await peer.payload() for peer in peers[1:]] == [b"x", b"x"]
    assert [await peer.payload() for peer in peers[1:]] == [b"gone", b"gone"]
    peers[1].reset()
    assert await peers[2].payload() == b"gone"


async def test_slow_peer_drop(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, backpressure=SMALL, slow_peer="drop")
    client, slow, count = await slow_peer(stack, server, held)
    (quick,) = await crowd(stack, server, 1)
    for number in range(10):
        assert await server.broadcast(str(number)) == 1
    assert [(await quick.payload()).decode() for _ in range(10)] == [str(number) for number in range(10)]
    assert server.metrics.slow_peer_drops == 10
    for _ in range(count):
        assert await slow.payload() == b"x" * 100_000
    await until(lambda: not client._outbox_size)
    assert await server.broadcast("seen again") == 2
    assert await slow.payload() == b"seen again"


async def test_slow_peer_close(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, backpressure=SMALL, slow_peer="close", close_timeout=0.2)
    client, slow, _ = await slow_peer(stack, server, held)
    (quick,) = await crowd(stack, server, 1)
    assert await server.broadcast("x") == 1
    assert await quick.payload() == b"x"
    assert not client.is_connected
    assert await server.broadcast("y") == 1
    await client.wait_closed()
    assert len(client.undelivered) == 5  # four that waited, and the one that was cut off
    with contextlib.suppress(EOFError, ConnectionError):
        code, _ = await slow.close_seen()
        assert code == 1008


async def test_slow_peer_wait(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, backpressure=SMALL, slow_peer="wait")
    _, slow, count = await slow_peer(stack, server, held)
    (quick,) = await crowd(stack, server, 1)
    sending = asyncio.create_task(server.broadcast("x"))
    assert await quick.payload() == b"x"  # the slow one has not read anything yet
    await turns()
    assert not sending.done()
    for _ in range(count):
        assert await slow.payload() == b"x" * 100_000
    assert await slow.payload() == b"x"
    assert await sending == 2
    assert server.metrics.slow_peer_drops == 0


@pytest.mark.parametrize("how", ["reset", "cancelled"])
async def test_slow_peer_wait_and_it_never_comes(stack: Stack, how: str) -> None:
    held = Held()
    server = await serve(stack, held, backpressure=SMALL, slow_peer="wait")
    client, slow, _ = await slow_peer(stack, server, held)
    sending = asyncio.create_task(server.broadcast("x"))
    await turns()
    if how == "reset":
        slow.reset()
        assert await asyncio.wait_for(sending, 20) == 0
        assert server.metrics.slow_peer_drops == 1
    else:
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert client.backpressure.waiting == 0
        slow.reset()


async def test_with_compression_it_arrives_all_the_same(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, compression=CompressionConfig(threshold=0))
    plain = await stack.enter_async_context(await RawPeer.open(server.port))
    packed = await stack.enter_async_context(
        await RawPeer.open(server.port, "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover")
    )
    assert packed.answer is not None
    assert "permessage-deflate" in packed.answer.headers["sec-websocket-extensions"]
    assert await server.broadcast("x" * 1000) == 2
    assert await plain.payload() == b"x" * 1000
    wire = await packed.frame()
    assert (wire.opcode, wire.rsv) == (TEXT, 4)
    assert len(wire.payload) < 100


async def test_what_is_larger_than_a_fragment_goes_out_in_several(stack: Stack) -> None:
    server = await serve(stack, Held(), compression=None, fragment_size=100)
    (peer,) = await crowd(stack, server, 1)
    for size, sizes in ((0, [0]), (100, [100]), (101, [100, 1]), (1000, [100] * 10)):
        assert await server.broadcast_binary(b"x" * size) == 1
        frames = [await peer.frame() for _ in sizes]
        assert [len(frame.payload) for frame in frames] == sizes
        assert [frame.opcode for frame in frames] == [BINARY] + [CONTINUATION] * (len(sizes) - 1)
        assert [frame.fin for frame in frames] == [False] * (len(sizes) - 1) + [True]


async def test_the_sender_says_whether_it_is_compressed(stack: Stack) -> None:
    server = await serve(stack, Held(), compression=CompressionConfig(threshold=100))
    peer = await stack.enter_async_context(
        await RawPeer.open(server.port, "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover")
    )
    for send in (server.broadcast, server.broadcast_text):
        for size, compress, packed in ((10, None, 0), (10, True, 4), (1000, None, 4), (1000, False, 0)):
            assert await send("x" * size, compress=compress) == 1
            assert (await peer.frame()).rsv == packed
    await server.broadcast_json("x" * 1000, compress=False)
    await server.broadcast_binary(b"x" * 1000, compress=False)
    assert [(await peer.frame()).rsv for _ in range(2)] == [0, 0]
