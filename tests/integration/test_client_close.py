"""The close handshake in every order, as a client meets it: what it sends, and which code and reason it knows.

The same for a server is in test_frames.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.error import ConnectionClosed
from fabric.message import Frame
from integration.raw import RawServer, Visit
from support.frames import CLOSE, CONTINUATION, TEXT, close_frame, encode

MOST = "r" * 123


def unmasked(opcode: int, payload: bytes | str = b"", **options: Any) -> bytes:
    return encode(opcode, payload, mask=False, **options)


def closing(code: int | None, reason: bytes | str = b"") -> bytes:
    return close_frame(code, reason, mask=False)


async def frames_of(visit: Visit) -> list[Frame]:
    """What the client sends, up to its close frame."""
    frames: list[Frame] = []
    while not frames or frames[-1].opcode != CLOSE:
        frames.append(await visit.frame())
    return frames


#: What the server sends; the code and the reason that the client then knows; the code that it sends.
SENT: dict[str, tuple[bytes, int, str, int | None]] = {
    "a code": (closing(4000, "why"), 4000, "why", 4000),
    "no code": (closing(None), 1005, "", None),
    "the longest reason": (closing(1000, MOST), 1000, MOST, 1000),
    "and data": (closing(1000) + unmasked(TEXT, "late"), 1000, "", 1000),
    "and nonsense": (closing(1000) + b"\xff\xff\xff", 1000, "", 1000),
    "and a second close": (closing(1000) + closing(4000), 1000, "", 1000),
    "half a code": (unmasked(CLOSE, b"\x03"), 1002, "malformed close frame", 1002),
    "a code for no one to send": (closing(1005), 1002, "malformed close frame", 1002),
    "a reason that is not UTF-8": (closing(1000, b"\xff"), 1007, "", 1007),
    "a reason too long": (closing(1000, MOST + "r"), 1002, "", 1002),
    "a masked frame": (encode(TEXT, "x"), 1002, "", 1002),
    "no such opcode": (unmasked(3), 1002, "unknown opcode", 1002),
    "a continuation of nothing": (unmasked(CONTINUATION, b"x"), 1002, "", 1002),
}


@pytest.mark.parametrize("case", SENT)
async def test_the_server_closes_or_fails(case: str) -> None:
    data, code, reason, answer = SENT[case]
    sent: list[Frame] = []

    async def handle(visit: Visit) -> None:
        await visit.accept(body=data)
        sent.extend(await frames_of(visit))

    async with RawServer(handle) as server:
        client = await WebSocketClient.connect(server.url, auto_reconnect=False, close_timeout=0.2, compression=None)
        try:
            assert await client.recv() is None
        except ConnectionClosed as error:
            assert (error.code, error.reason) == (code, client.close_reason)  # noqa: PT017
        await client.wait_closed()
        assert client.close_code == code
        if reason:
            assert client.close_reason == reason
    assert [frame.opcode for frame in sent] == [CLOSE]
    assert sent[0].payload[:2] == (b"" if answer is None else answer.to_bytes(2, "big"))


#: What the server answers to our close; the code and the reason that the client then knows.
ANSWERED: dict[str, tuple[bytes | None, int, str]] = {
    "the same": (closing(4001, "bye"), 4001, "bye"),
    "another code": (closing(4002, "mine"), 4002, "mine"),
    "no code": (closing(None), 1005, ""),
    "data first": (unmasked(TEXT, "x") * 2000 + closing(4001, "bye"), 4001, "bye"),
    "half a message first": (unmasked(TEXT, "x", fin=False) + closing(4001, "bye"), 4001, "bye"),
    "a code for no one to send": (closing(1005), 1006, ""),
    "no such opcode": (unmasked(3), 1006, ""),
    "a masked frame": (encode(TEXT, "x"), 1006, ""),
    "nothing": (b"", 1006, ""),
    "a reset": (None, 1006, ""),
}


@pytest.mark.parametrize("case", ANSWERED)
async def test_the_client_closes(case: str) -> None:
    data, code, reason = ANSWERED[case]

    async def handle(visit: Visit) -> None:
        await visit.accept()
        while (await visit.frame()).opcode != CLOSE:
            pass
        if data is None:
            visit.writer.transport.abort()
        else:
            visit.writer.write(data)
            await visit.until_closed()

    async with RawServer(handle) as server:
        client = await WebSocketClient.connect(server.url, auto_reconnect=False, close_timeout=0.2, compression=None)
        await client.close(4001, "bye")
        assert (client.close_code, client.close_reason) == (code, reason)


async def test_both_close_at_once() -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        visit.writer.write(closing(4002, "mine"))
        sent.extend(await frames_of(visit))

    sent: list[Frame] = []
    async with RawServer(handle) as server:
        client = await WebSocketClient.connect(server.url, auto_reconnect=False, compression=None)
        await client.close(4001, "bye")
        assert (client.close_code, client.close_reason) == (4002, "mine")
    assert [frame.opcode for frame in sent] == [CLOSE]
