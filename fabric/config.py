"""What can be configured, with units, defaults and limits. A config is checked once, when it is made.

Every config is a frozen dataclass with keyword arguments. Each field has a builder `with_<field>`, which
returns a changed copy. Durations are seconds (float) or `timedelta`, at most 10**9 s, and are held as float; sizes
are bytes; counts and sizes are at most 2**62. A wrong value raises ValueError, a value of a wrong type and an unknown
option TypeError; they name the field, the value and what is allowed. The repr shows what differs from the defaults,
and no credentials.

Owns: names, defaults, limits, and what follows from the fields alone. Opens nothing, reads no environment.
"""

from __future__ import annotations

from fabric._config.client import ClientConfig
from fabric._config.compression import CompressionConfig
from fabric._config.defaults import (
    DEFAULT_BUFFER_SIZE,
    DEFAULT_CONNECTION_TIMEOUT,
    DEFAULT_MAX_MESSAGE_SIZE,
    DEFAULT_PING_INTERVAL,
    DEFAULT_PING_TIMEOUT,
)
from fabric._config.options import ClientOptions, ServerOptions
from fabric._config.policies import (
    BackpressureConfig,
    HeartbeatConfig,
    PoolConfig,
    RateLimitConfig,
    ReconnectConfig,
)
from fabric._config.server import ServerConfig

__all__ = [
    "DEFAULT_BUFFER_SIZE",
    "DEFAULT_CONNECTION_TIMEOUT",
    "DEFAULT_MAX_MESSAGE_SIZE",
    "DEFAULT_PING_INTERVAL",
    "DEFAULT_PING_TIMEOUT",
    "BackpressureConfig",
    "ClientConfig",
    "ClientOptions",
    "CompressionConfig",
    "HeartbeatConfig",
    "PoolConfig",
    "RateLimitConfig",
    "ReconnectConfig",
    "ServerConfig",
    "ServerOptions",
]
