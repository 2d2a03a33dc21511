"""WebSockets for latency-sensitive Python."""

VERSION = __version__ = "0.1.0"
