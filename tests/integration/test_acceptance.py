"""The end of an opening handshake that is refused or answered: nothing is cut off, nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import warnings
from typing import Any

from support.serving import serve, until

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def test_a_long_answer_to_a_slow_reader_is_not_cut_off(stack: contextlib.AsyncExitStack) -> None:
    body = bytes(16 << 20)

    async def big(_request: Any) -> Any:
        return 200, {}, body

    server = await serve(stack, process_request=big, on_message=lambda client, message: None)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 16)
    stack.callback(writer.close)
    writer.write(REQUEST)
    received = 0
    begun = time.monotonic()
    while chunk := await reader.read(1 << 20):
        received += len(chunk)
        if time.monotonic() < begun + 1.5:  # longer than a client has that takes nothing
            await asyncio.sleep(0.1)
    assert received > len(body)


async def test_a_client_that_neither_reads_nor_hangs_up_is_dropped(stack: contextlib.AsyncExitStack) -> None:
    def big(_request: Any) -> Any:
        return 200, {}, bytes(64 << 20)

    server = await serve(stack, process_request=big, on_message=lambda client, message: None)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 10)
    stack.callback(writer.close)
    writer.write(REQUEST)
    await reader.readexactly(1000)
    await until(lambda: not server._handshakes)
    received = 0
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(1 << 20):
            received += len(chunk)
    assert received < 64 << 20


async def test_a_deadline_that_passes_while_the_request_arrives(stack: contextlib.AsyncExitStack) -> None:
    async def never(_request: Any) -> None:
        await asyncio.sleep(60)

    server = await serve(stack, process_request=never, on_message=lambda client, message: None, handshake_timeout=0.05)
    with warnings.catch_warnings(record=True) as caught:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        stack.callback(writer.close)
        await until(lambda: server._handshakes)
        writer.write(REQUEST)
        time.sleep(0.2)  # noqa: ASYNC251  (the loop is busy: both have happened when it looks again)
        assert (await reader.readline()).startswith((b"HTTP/1.1 408", b"HTTP/1.1 503"))
        gc.collect()
    assert [str(each.message) for each in caught] == []
