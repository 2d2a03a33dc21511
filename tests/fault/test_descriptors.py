"""A server that runs out of file descriptors says so, serves those it has, and recovers."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from pathlib import Path
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fault.counted import number_of, numbered
from fault.service import Service
from support.serving import until
from support.tls import certificate_file, client_context

ROOM = 60  # descriptors, of which the server has a dozen for itself
OPTIONS: dict[str, Any] = {"compression": None, "auto_reconnect": False, "heartbeat": None}


@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)  # that of the clients
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.deadline(60)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_descriptors_exhausted_on_accept(
    tmp_path: Path, loop: str, stack: contextlib.AsyncExitStack, *, secure: bool
) -> None:
    options = {**OPTIONS, **({"ssl": client_context()} if secure else {})}
    certificate = certificate_file(tmp_path) if secure else None
    async with Service(tmp_path, loop=loop, descriptors=ROOM, certificate=certificate, ping_interval=None) as service:
        inside: list[WebSocketClient] = []
        with contextlib.suppress(Exception):
            while len(inside) < ROOM:
                inside.append(await WebSocketClient.connect(service.url, connection_timeout=5, **options))
                stack.push_async_callback(inside[-1].close)
        print(f"{len(inside)} clients found room")
        assert 30 < len(inside) < ROOM
        began = time.monotonic()
        await until(lambda: service.errors)
        for number, client in enumerate(inside):
            await client.send(numbered(number))
            assert number_of(await client.recv()) == number
        if loop == "uvloop" and not secure:  # which tells only how long this has been so
            await until(lambda: any("was free" in text for text in service.errors))
        # Room again: whoever comes now is let in, although nothing was restarted.
        for client in inside[:20]:
            await client.close()
        late = []
        async with asyncio.timeout(25):
            while len(late) < 10:
                with contextlib.suppress(Exception):
                    late.append(await WebSocketClient.connect(service.url, connection_timeout=5, **options))
                    stack.push_async_callback(late[-1].close)
        for client in late:
            await client.send(numbered(7))
            assert number_of(await client.recv()) == 7
        print(*service.errors, sep="\n")
        assert sum("file descriptors run short" in text for text in service.errors) == 1
        # uvloop's listener turns clients away, others let them wait: that is said once, then once a second.
        waits = [text for text in service.errors if re.search("can be accepted|have had to wait|was free", text)]
        assert len(service.errors) == 1 + len(waits)
        assert waits
        assert ("turned away" in waits[0]) == (loop == "uvloop" and not secure)
        assert len(waits) <= 5 + time.monotonic() - began  # of which the attempts to connect took 3 seconds
        await stack.aclose()
