"""Compression between fabric and peers that speak bytes: what is agreed on, and that both keep to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import zlib
from collections.abc import AsyncIterator

import pytest

from fabric.client import WebSocketClient
from fabric.config import CompressionConfig
from fabric.error import HandshakeFailed
from integration.raw import RawServer, Visit
from support.deflate import Deflate, agreed
from support.frames import BINARY, CLOSE, CONTINUATION, TEXT, Wire, encode
from support.raw_peer import RawPeer, request
from support.serving import Held, echo, serve, turns

Stack = contextlib.AsyncExitStack

DEFAULT = CompressionConfig()
WIDE = CompressionConfig(server_max_window_bits=15, client_max_window_bits=15)
NARROW = CompressionConfig(server_max_window_bits=9, client_max_window_bits=9)
FORGETFUL = CompressionConfig(server_no_context_takeover=True, client_no_context_takeover=True)

DEFLATE = "permessage-deflate"
OFFER = f"Sec-WebSocket-Extensions: {DEFLATE}"
RSV1 = 4


def messages(rng: random.Random) -> list[bytes]:
    """Messages that repeat what stands near, or some kilobytes before: out of the reach of small windows."""
    records = [json.dumps({"id": rng.getrandbits(60), "price": rng.random()}).encode() for _ in range(800)]
    return [
        records[0],
        b"".join(records[:5]),
        b"".join(records[:100]),
        b"".join(records),
        b"".join(records) + b"".join(records[700:]),
        records[799],
        records[0],
    ]


# What a server answers


def deflate(*parameters: str) -> str:
    return "; ".join((DEFLATE, *parameters))


ANSWERS: dict[str, tuple[CompressionConfig, tuple[str, ...], str | None]] = {
    "nothing asked": (WIDE, (DEFLATE,), DEFLATE),
    "the server's own window": (DEFAULT, (DEFLATE,), deflate("server_max_window_bits=12")),
    "a window for the server": (
        WIDE,
        (deflate("server_max_window_bits=10"),),
        deflate("server_max_window_bits=10"),
    ),
    "a larger one than it has": (
        DEFAULT,
        (deflate("server_max_window_bits=15"),),
        deflate("server_max_window_bits=12"),
    ),
    "the smallest window": (
        WIDE,
        (deflate("server_max_window_bits=9"),),
        deflate("server_max_window_bits=9"),
    ),
    "any window for the client": (
        NARROW,
        (deflate("client_max_window_bits"),),
        deflate("server_max_window_bits=9", "client_max_window_bits=9"),
    ),
    "no window for the client": (NARROW, (DEFLATE,), deflate("server_max_window_bits=9")),
    "the client's window": (
        WIDE,
        (deflate("client_max_window_bits=11"),),
        deflate("client_max_window_bits=11"),
    ),
    "all four": (
        WIDE,
        (
            deflate(
                "client_max_window_bits=10",
                "server_max_window_bits=11",
                "client_no_context_takeover",
                "server_no_context_takeover",
            ),
        ),
        deflate(
            "server_no_context_takeover",
            "client_no_context_takeover",
            "server_max_window_bits=11",
            "client_max_window_bits=10",
        ),
    ),
    "a value in quotes": (
        WIDE,
        (deflate('server_max_window_bits="10"'),),
        deflate("server_max_window_bits=10"),
    ),
    "a server that forgets": (
        FORGETFUL,
        (DEFLATE,),
        deflate("server_no_context_takeover", "client_no_context_takeover", "server_max_window_bits=12"),
    ),
    "the first of several offers": (
        WIDE,
        (f"{deflate('server_max_window_bits=10')}, {DEFLATE}",),
        deflate("server_max_window_bits=10"),
    ),
    "the first that is valid": (
        WIDE,
        (
            f"x-webkit-deflate-frame, {deflate('unknown')}, {deflate('server_max_window_bits=16')}",
            f"{deflate('server_no_context_takeover')}, {DEFLATE}",
        ),
        deflate("server_no_context_takeover"),
    ),
    "several lines": (WIDE, ("permessage-bzip2; level=9", deflate("unknown=1"), DEFLATE), DEFLATE),
    "zstd, which was not asked for here": (WIDE, (f"permessage-zstd, {DEFLATE}",), DEFLATE),
    "an unknown extension": (WIDE, ("permessage-bzip2",), None),
    "an unknown parameter": (WIDE, (deflate("unknown"),), None),
    "a parameter twice": (WIDE, (deflate("server_max_window_bits=10", "server_max_window_bits=10"),), None),
    "a flag twice": (WIDE, (deflate("client_no_context_takeover", "client_no_context_takeover"),), None),
    "a flag with a value": (WIDE, (deflate("server_no_context_takeover=1"),), None),
    "a window without a value": (WIDE, (deflate("server_max_window_bits"),), None),
    "too small a window": (WIDE, (deflate("server_max_window_bits=7"),), None),
    "a window with a zero before it": (WIDE, (deflate("client_max_window_bits=010"),), None),
    "compression switched off": (DEFAULT.with_enabled(False), (DEFLATE,), None),
    "nothing offered": (WIDE, (), None),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_what_a_server_answers_and_keeps(stack: Stack, name: str, rng: random.Random) -> None:
    config, offers, answer = ANSWERS[name]
    server = await serve(stack, echo, compression=config.with_threshold(0))
    lines = [f"Sec-WebSocket-Extensions: {offer}" for offer in offers]
    async with await RawPeer.open(server.port, *lines) as peer:
        assert peer.answer is not None
        assert peer.answer.headers.get("sec-websocket-extensions") == answer
        await exchange(peer, answer, messages(rng))


async def exchange(peer: RawPeer, answer: str | None, data: list[bytes]) -> None:
    """Send each message, and find it in its echo, both packed under the terms of `answer`."""
    ours, theirs = agreed(answer or "", "client"), agreed(answer or "", "server")
    for message in data:
        if answer is None:
            peer.send_binary(message)
            assert await peer.frame() == Wire(BINARY, message)
        else:
            peer.send_frame(BINARY, ours.pack(message), rsv=RSV1)
            wire = await peer.frame()
            assert (wire.opcode, wire.fin, wire.rsv) == (BINARY, True, RSV1)
            assert theirs.unpack(wire.payload) == message


@pytest.mark.parametrize("offer", ["permessage-deflate;", "permessage deflate", "a; b=", 'a; b="', "a; b=\x7f", ";"])
async def test_a_malformed_offer_is_a_bad_request(stack: Stack, offer: str) -> None:
    server = await serve(stack, echo, compression=DEFAULT)
    async with await RawPeer.connect(server.port) as peer:
        peer.send(request(f"Sec-WebSocket-Extensions: {offer}"))
        assert (await peer.read_answer()).status == 400


# What a client accepts

ACCEPTED: dict[str, tuple[CompressionConfig, str | None]] = {
    "nothing": (DEFAULT, None),
    "no window for a client that can do with any": (WIDE, DEFLATE),
    "windows": (WIDE, deflate("server_max_window_bits=9", "client_max_window_bits=10")),
    "the windows offered": (DEFAULT, deflate("server_max_window_bits=12", "client_max_window_bits=12")),
    "smaller windows": (DEFAULT, deflate("server_max_window_bits=9", "client_max_window_bits=9")),
    "the offer without a window for the server": (DEFAULT, DEFLATE),
    "no takeover": (WIDE, deflate("server_no_context_takeover", "client_no_context_takeover")),
    "no takeover where it was offered": (FORGETFUL, deflate("server_no_context_takeover")),
}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_what_a_client_accepts_and_keeps(name: str, rng: random.Random) -> None:
    config, answer = ACCEPTED[name]
    terms = answer or ""
    if config is FORGETFUL:
        terms += "; client_no_context_takeover"  # its own promise holds without an answer, RFC 7692 §7.1.1.2
    if answer == DEFLATE and config is DEFAULT:
        terms += "; client_max_window_bits=12"

    async def echo(visit: Visit) -> None:
        headers = await visit.accept(*([] if answer is None else [f"Sec-WebSocket-Extensions: {answer}"]))
        assert DEFLATE in headers["sec-websocket-extensions"]
        ours, theirs = agreed(terms, "server"), agreed(terms, "client")
        while (frame := await visit.frame()).opcode != CLOSE:
            assert frame.rsv1 == (answer is not None)
            if answer is None:
                visit.writer.write(encode(BINARY, frame.payload, mask=False))
            else:
                message = theirs.unpack(frame.payload)
                visit.writer.write(encode(BINARY, ours.pack(message), rsv=RSV1, mask=False))
        visit.writer.write(encode(CLOSE, frame.payload, mask=False))

    async with (
        RawServer(echo) as server,
        WebSocketClient.connect(server.url, compression=config.with_threshold(0)) as client,
    ):
        assert client.extensions == (() if answer is None else (answer,))
        for message in messages(rng):
            await client.send(message)
            received = await client.recv()
            assert received is not None
            assert received.as_bytes() == message
    assert client.close_code == 1000


REFUSED: dict[str, tuple[CompressionConfig, str]] = {
    "an extension that was not offered": (DEFAULT, "permessage-bzip2"),
    "zstd that was not offered": (DEFAULT, "permessage-zstd"),
    "an extension without an offer": (DEFAULT.with_enabled(False), DEFLATE),
    "one twice": (DEFAULT, f"{DEFLATE}, {DEFLATE}"),
    "an unknown parameter": (DEFAULT, deflate("unknown")),
    "a parameter twice": (DEFAULT, deflate("server_max_window_bits=9", "server_max_window_bits=9")),
    "a window out of range": (DEFAULT, deflate("server_max_window_bits=16")),
    "a window without a value": (DEFAULT, deflate("client_max_window_bits")),
    "a flag with a value": (DEFAULT, deflate("server_no_context_takeover=true")),
    "takeover against what was asked": (FORGETFUL, DEFLATE),
    "what is no header": (DEFAULT, "permessage-deflate; ="),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_a_client_refuses(name: str) -> None:
    config, answer = REFUSED[name]

    async def accept(visit: Visit) -> None:
        await visit.accept(f"Sec-WebSocket-Extensions: {answer}")
        await visit.until_closed()

    async with RawServer(accept) as server:
        with pytest.raises(HandshakeFailed):
            await WebSocketClient.connect(server.url, compression=config)


# What is compressed


async def test_only_messages_from_the_threshold_on_are_compressed(stack: Stack) -> None:
    server = await serve(stack, echo, compression=WIDE.with_threshold(100))
    async with await RawPeer.open(server.port, OFFER) as peer:
        unpacker = Deflate()
        for size in (0, 1, 99, 100, 101, 10_000, 99, 100):
            peer.send_text("x" * size)
            wire = await peer.frame()
            assert wire.rsv == (RSV1 if size >= 100 else 0)
            assert (unpacker.unpack(wire.payload) if wire.rsv else wire.payload) == b"x" * size


async def test_the_sender_of_a_message_has_the_last_word(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, compression=WIDE.with_threshold(100))
    async with await RawPeer.open(server.port, OFFER) as peer:
        client = await held.next()
        unpacker = Deflate()
        for size, compress, packed in [
            (10, None, False),
            (10, True, True),
            (1000, None, True),
            (1000, False, False),
            (1000, True, True),
            (10, False, False),
        ]:
            await client.send("x" * size, compress=compress)
            wire = await peer.frame()
            assert wire.rsv == (RSV1 if packed else 0)
            assert (unpacker.unpack(wire.payload) if packed else wire.payload) == b"x" * size


@pytest.mark.parametrize("config", [WIDE, FORGETFUL], ids=["takeover", "none"])
async def test_a_message_in_parts_is_compressed_part_by_part(stack: Stack, config: CompressionConfig) -> None:
    """Each part can be read when it arrives; the first one decides (RFC 7692 §6.1: RSV1 on the first frame only)."""
    held = Held()
    server = await serve(stack, held, compression=config.with_threshold(100), fragment_size=60)
    async with await RawPeer.open(server.port, OFFER) as peer:
        client = await held.next()
        unpacker = Deflate()
        for first, compress, packed in ((100, None, True), (99, None, False), (5, True, True), (500, False, False)):
            parts = ["x" * first, "", "y" * 10_000, "z"]
            await client.send(iter(parts), compress=compress)
            frames = [await peer.frame()]
            while not frames[-1].fin:
                frames.append(await peer.frame())
            assert [frame.rsv for frame in frames] == [RSV1 * packed] + [0] * (len(frames) - 1)
            assert all(len(frame.payload) <= 60 for frame in frames)
            data = b"".join(frame.payload for frame in frames)
            assert (unpacker.unpack(data) if packed else data) == "".join(parts).encode()
        await client.send("x" * 1000)
        assert unpacker.unpack((await peer.frame()).payload) == b"x" * 1000


async def test_parts_arrive_while_the_message_goes_on(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, compression=WIDE)
    client = await WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", compression=WIDE)
    stack.push_async_callback(client.close)
    sender = await held.next()
    received: asyncio.Queue[str | bytes] = asyncio.Queue()

    async def receive() -> None:
        async for part in client.recv_stream():
            received.put_nowait(part)

    async def parts() -> AsyncIterator[str]:
        for number in range(5):
            yield f"part {number} " * 50
            if number:  # a part leaves when the next one is there
                assert await received.get() == f"part {number - 1} " * 50

    receiving = asyncio.create_task(receive())
    await turns()  # a message that has begun before the stream is asked for comes whole
    await sender.send(parts())
    await receiving
    assert client.metrics.decompression_bytes_out == 5 * 350


async def test_a_compressed_message_is_split_after_it_is_compressed(stack: Stack, rng: random.Random) -> None:
    server = await serve(stack, echo, compression=WIDE, fragment_size=500)
    data = messages(rng)[2]
    async with await RawPeer.open(server.port, OFFER) as peer:
        for packed in (Deflate().pack(data), b""):
            peer.send_frame(BINARY, packed or data, rsv=RSV1 if packed else 0)
            frames = [await peer.frame()]
            while not frames[-1].fin:
                frames.append(await peer.frame())
            # RFC 7692 §6.1: RSV1 on the first frame only.
            assert [frame.rsv for frame in frames] == [RSV1] + [0] * (len(frames) - 1)
            assert [frame.opcode for frame in frames] == [BINARY] + [CONTINUATION] * (len(frames) - 1)
            assert all(len(frame.payload) == 500 for frame in frames[:-1])
            if packed:
                unpacker = Deflate()
            assert unpacker.unpack(b"".join(frame.payload for frame in frames)) == data


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """Pieces of `data`, some of them empty."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(5))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


async def test_compressed_fragments_are_received(stack: Stack, rng: random.Random) -> None:
    server = await serve(stack, echo, compression=WIDE.with_threshold(0))
    packer, unpacker = Deflate(), Deflate()
    async with await RawPeer.open(server.port, OFFER) as peer:
        for data in messages(rng):
            *pieces, last = cut(packer.pack(data), rng)
            for number, piece in enumerate(pieces):
                peer.send_frame(CONTINUATION if number else BINARY, piece, fin=False, rsv=0 if number else RSV1)
            peer.send_frame(CONTINUATION, last)
            assert unpacker.unpack(await peer.payload()) == data


async def test_what_does_not_inflate_closes_with_1007(stack: Stack) -> None:
    server = await serve(stack, echo, compression=WIDE)
    async with await RawPeer.open(server.port, OFFER) as peer:
        peer.send_frame(TEXT, b"\xff\xff\xff\xff", rsv=RSV1)
        assert (await peer.close_seen())[0] == 1007


# Broadcast

SETTINGS: dict[str, str | None] = {
    "plain": None,
    "with takeover": DEFLATE,
    "with takeover too": DEFLATE,
    "without takeover": deflate("server_no_context_takeover"),
    "without takeover too": deflate("server_no_context_takeover"),
    "in a small window": deflate("server_max_window_bits=9"),
    "in a small window, without takeover": deflate("server_no_context_takeover", "server_max_window_bits=9"),
}


async def test_a_broadcast_leaves_every_connection_decodable(stack: Stack, rng: random.Random) -> None:
    held = Held()
    server = await serve(stack, held, compression=WIDE.with_threshold(10))
    listeners = []
    for offer in SETTINGS.values():
        lines = [] if offer is None else [f"Sec-WebSocket-Extensions: {offer}"]
        peer = await stack.enter_async_context(await RawPeer.open(server.port, *lines))
        assert peer.answer is not None
        assert peer.answer.headers.get("sec-websocket-extensions") == offer
        listeners.append((peer, await held.next(), agreed(offer or "", "server")))
    records = messages(rng)
    for _ in range(60):
        size = rng.choice([5, 200, 3000, 30_000])
        source = rng.choice(records)
        at = rng.randrange(max(1, len(source) - size))
        data = source[at : at + size]
        if rng.random() < 0.5:
            assert await server.broadcast_binary(data) == len(listeners)
            receivers = listeners
        else:  # to one of them alone, so that their histories differ
            receivers = [rng.choice(listeners)]
            await receivers[0][1].send(data, compress=rng.choice([None, False, True]))
        for peer, _client, unpacker in receivers:
            wire = await peer.frame()
            assert (unpacker.unpack(wire.payload) if wire.rsv else wire.payload) == data


async def test_a_broadcast_is_compressed_once_for_all_with_one_setting(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, compression=WIDE)
    peers = [await stack.enter_async_context(await RawPeer.open(server.port, OFFER)) for _ in range(3)]
    for _ in peers:
        await held.next()
    for _ in range(2):
        await server.broadcast_text("to all of you: " * 100)
        frames = {await peer.frame() for peer in peers}
        assert len(frames) == 1
        assert frames.pop().rsv == RSV1


# zstd, which only fabric knows

RECORDS = [json.dumps({"type": "trade", "symbol": "ABC", "price": i * 37 % 1000}) for i in range(200)]
DICTIONARY = "".join(RECORDS[:50]).encode()
ZSTD = CompressionConfig(algorithm="zstd", threshold=0)
TRAINED = ZSTD.with_zstd_dictionary(DICTIONARY)

ZSTD_PAIRS: dict[str, tuple[CompressionConfig, CompressionConfig, str]] = {
    "both": (ZSTD, ZSTD, "permessage-zstd; "),
    "both with one dictionary": (TRAINED, TRAINED, f"; dictionary={zlib.crc32(DICTIONARY):08x}"),
    "only the client with a dictionary": (TRAINED, ZSTD, "permessage-zstd; "),
    "with different dictionaries": (TRAINED, ZSTD.with_zstd_dictionary(b"another one"), "permessage-zstd; "),
    "both without takeover": (
        ZSTD.with_server_no_context_takeover(True).with_client_no_context_takeover(True),
        ZSTD,
        "permessage-zstd; server_no_context_takeover; client_no_context_takeover",
    ),
    "a client that knows deflate": (DEFAULT, ZSTD, DEFLATE),
    "a server that knows deflate": (ZSTD, DEFAULT, DEFLATE),
}


@pytest.mark.parametrize("name", ZSTD_PAIRS)
async def test_zstd_between_two_of_fabric(stack: Stack, name: str) -> None:
    ours, theirs, agreement = ZSTD_PAIRS[name]
    held = Held()
    server = await serve(stack, held, compression=theirs)
    async with WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", compression=ours) as client:
        assert agreement in client.extensions[0]
        assert ("dictionary" in client.extensions[0]) == ("one dictionary" in name)
        other = await held.next()
        for sender, receiver in [(client, other), (other, client)]:
            for text in ["", *RECORDS, "".join(RECORDS), "😀" * 50_000]:
                await sender.send(text)
                message = await receiver.recv()
                assert message is not None
                assert message.as_text() == text
            assert sender.metrics.compression_bytes_out < sender.metrics.compression_bytes_in / 3


async def test_zstd_bombs_are_closed_with_1009(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, compression=ZSTD, max_message_size=1 << 20)
    async with WebSocketClient.connect(
        f"ws://127.0.0.1:{server.port}/", compression=ZSTD, auto_reconnect=False
    ) as client:
        other = await held.next()
        await client.send(bytes(1 << 20))
        message = await other.recv()
        assert message is not None
        assert len(message) == 1 << 20
        await client.send(bytes((1 << 20) + 1))
        await client.wait_closed()
        await other.wait_closed()
    assert (client.close_code, other.close_code) == (1009, 1009)
