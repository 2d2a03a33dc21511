"""The heartbeats of clients: one sweep for all of a loop that are configured alike."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from fabric._config.policies import HeartbeatConfig
from fabric.heartbeat import HeartbeatManager
from fabric.metrics import loop_metrics_of

__all__ = ["heartbeat_of"]

_heartbeats: WeakValueDictionary[tuple[int, HeartbeatConfig], HeartbeatManager] = WeakValueDictionary()


def heartbeat_of(loop: asyncio.AbstractEventLoop, config: HeartbeatConfig) -> HeartbeatManager | None:
    """The one sweep of all clients of `loop` with this heartbeat. It keeps its loop, and clients keep it."""
    if not config.enabled:
        return None
    key = id(loop), config
    manager = _heartbeats.get(key)
    if manager is None:
        late = loop_metrics_of(loop).record_lateness
        manager = _heartbeats[key] = HeartbeatManager(config, loop, on_late=late)
    return manager
