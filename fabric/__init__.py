"""WebSockets for latency-sensitive Python."""

from fabric._version import VERSION as VERSION

__version__ = VERSION
