"""Sends one message to many connections: at once where it can be taken, and to slow peers as `slow_peer` says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fabric._server.connected_client import ConnectedClient
from fabric.error import BufferFull, ConnectionClosed, InvalidState
from fabric_ext.broadcast import Shared

if TYPE_CHECKING:
    from fabric.config import ServerConfig
    from fabric.message import Message
    from fabric.metrics import MetricsCollector

__all__ = ["send_to_all"]


async def send_to_all(
    clients: list[ConnectedClient],
    message: Message,
    compress: bool | None,
    config: ServerConfig,
    metrics: MetricsCollector,
) -> int:
    """Send a message to all of `clients`; return to how many it was written or for how many it is kept.

    Args:
        compress: as in `send`.
        config: of the server: how messages are split, and what becomes of slow peers.
        metrics: where messages that slow peers do not get are counted.
    """
    reached, later = Shared(message, compress, config.fragment_size or 0).send_to(clients)
    waiting = []
    for client in later:
        try:
            client.send_nowait(message, compress=compress)
            reached += 1
        except BufferFull:
            if config.slow_peer == "wait":
                waiting.append(_send_to_slow(client, message, compress, config.close_timeout))
                continue
            metrics.record_slow_peer_drop()
            if config.slow_peer == "close":
                client._begin_closing(1008, "too slow")
        except (ConnectionClosed, InvalidState):
            pass
    if waiting:
        sent = sum(await asyncio.gather(*waiting))
        metrics.record_slow_peer_drop(len(waiting) - sent)
        reached += sent
    return reached


async def _send_to_slow(client: ConnectedClient, message: Message, compress: bool | None, patience: float) -> bool:
    """Wait as long as the peer takes bytes; one that takes none for `patience` seconds is cut off. Is it kept?"""
    sending = asyncio.ensure_future(client.send(message, compress=compress))
    try:
        before = client._standing()
        while not (await asyncio.wait([sending], timeout=patience))[0]:
            if not client._has_moved(before):
                client._cut_off()
            before = client._standing()
        return sending.exception() is None
    finally:
        sending.cancel()
