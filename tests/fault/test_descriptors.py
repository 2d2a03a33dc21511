"""A server that runs out of file descriptors says so, serves those it has, and recovers."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fault.counted import number_of, numbered
from fault.service import Service
from support.serving import until

ROOM = 60  # descriptors, of which the server has a dozen for itself
OPTIONS: dict[str, Any] = {"compression": None, "auto_reconnect": False, "heartbeat": None}


@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)  # that of the clients
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.deadline(60)
async def test_descriptors_exhausted_on_accept(tmp_path: Path, loop: str, stack: contextlib.AsyncExitStack) -> None:
    async with Service(tmp_path, loop=loop, descriptors=ROOM, ping_interval=None) as service:
        inside: list[WebSocketClient] = []
        with contextlib.suppress(Exception):
            while len(inside) < ROOM:
                inside.append(await WebSocketClient.connect(service.url, connection_timeout=5, **OPTIONS))
                stack.push_async_callback(inside[-1].close)
        print(f"{len(inside)} clients found room")
        assert 30 < len(inside) < ROOM
        await until(lambda: service.errors)
        print(*service.errors[:3], sep="\n")
        assert sum("file descriptors run short" in text for text in service.errors) == 1
        for number, client in enumerate(inside):
            await client.send(numbered(number))
            assert number_of(await client.recv()) == number
        # Room again: whoever comes now is let in, although nothing was restarted.
        for client in inside[:20]:
            await client.close()
        late = []
        async with asyncio.timeout(25):
            while len(late) < 10:
                with contextlib.suppress(Exception):
                    late.append(await WebSocketClient.connect(service.url, connection_timeout=5, **OPTIONS))
                    stack.push_async_callback(late[-1].close)
        for client in late:
            await client.send(numbered(7))
            assert number_of(await client.recv()) == 7
        await stack.aclose()
