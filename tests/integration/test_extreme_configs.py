"""Every limit works at its bounds: what a config accepts, a client and a server can live with."""

from __future__ import annotations

import contextlib
from dataclasses import fields, replace
from typing import Any

import pytest

from fabric._config.validation import LARGEST, LONGEST, Config
from fabric.client import WebSocketClient
from fabric.config import ClientConfig, CompressionConfig, RateLimitConfig, ServerConfig
from fabric.message import Message
from fabric.server import WebSocketServer
from support.serving import echo

Stack = contextlib.AsyncExitStack

# Numbers that have bounds of their own.
OWN = {
    "backlog": (1, 65_535),
    "backoff_multiplier": (1, 1e300),
    "backpressure_threshold": (0.01, 1),
    "client_max_window_bits": (8, 15),
    "jitter": (0, 1),
    "level": (1, 9),
    "max_header_size": (1024, 16 * 1024),
    "mem_level": (1, 9),
    "recovery_threshold": (0, 1),
    "server_max_window_bits": (8, 15),
}
# Where the least is not for a connection to live with.
LEAST_SECONDS = 5.0


def at_bound(config: Any, top: bool) -> Any:
    """A copy with every number at its most, or at its least."""
    changes: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Config):
            changes[field.name] = at_bound(value, top)
        elif field.name in OWN:
            changes[field.name] = OWN[field.name][top]
        elif isinstance(value, float):
            changes[field.name] = LONGEST if top else LEAST_SECONDS
        elif type(value) is int:
            changes[field.name] = LARGEST if top else 1
    return replace(config, **changes)


@pytest.mark.parametrize("compression", [None, CompressionConfig()], ids=["plain", "compressed"])
async def test_at_the_most(stack: Stack, compression: CompressionConfig | None) -> None:
    limits = RateLimitConfig(messages_per_second=1e18, messages_burst=LARGEST, bytes_per_second=1e18)
    options: dict[str, Any] = {"compression": compression, "rate_limit": limits, "fragment_size": LARGEST}
    server = WebSocketServer(at_bound(ServerConfig("127.0.0.1:0", global_rate_limit=limits, **options), True), echo)
    await stack.enter_async_context(server)
    config = at_bound(ClientConfig(f"ws://127.0.0.1:{server.port}/", **options), True)
    client = await stack.enter_async_context(WebSocketClient.connect(config))
    await check(client)
    assert await client.ping() >= 0


@pytest.mark.parametrize("compression", [None, CompressionConfig()], ids=["plain", "compressed"])
async def test_at_the_least(stack: Stack, compression: CompressionConfig | None) -> None:
    options: dict[str, Any] = {"compression": compression, "max_message_size": 10_000, "max_fragments": 10_000}
    bind = replace(at_bound(ServerConfig("127.0.0.1:0"), False), **options)
    server = await stack.enter_async_context(WebSocketServer(bind, echo))
    config = replace(at_bound(ClientConfig(f"ws://127.0.0.1:{server.port}/"), False), **options)
    client = await stack.enter_async_context(WebSocketClient.connect(config))
    await check(client)


async def check(client: WebSocketClient) -> None:
    for text in ("x", "ü" * 3000, ""):
        await client.send(text)
        assert await client.recv() == Message(text)
    await client.send(iter("012345678"))
    assert await client.recv() == Message("012345678")
