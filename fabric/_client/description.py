"""What a client says of itself: its address, its handshake, its heartbeat.

Owns the fields behind these properties; `fabric.client` sets them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabric._connection.base import BaseConnection
from fabric._http.messages import Request, Response, response_of

if TYPE_CHECKING:
    from fabric._handshake.client import HandshakeResult
    from fabric._http.url import Url
    from fabric.config import ClientConfig
    from fabric.heartbeat import HeartbeatManager
    from fabric.reconnect import ReconnectState

__all__ = ["DescribedClient"]


class DescribedClient(BaseConnection):
    """The properties of a `WebSocketClient`."""

    __slots__ = ("_handshake", "_heartbeat", "_schedule")

    _handshake: HandshakeResult | None
    _heartbeat: HeartbeatManager | None
    _schedule: ReconnectState

    @property
    def config(self) -> ClientConfig:
        """What it was made with."""
        config: ClientConfig = self._config
        return config

    @property
    def url(self) -> str:
        """The address, without credentials: the latest one that was connected to, where a function gives it."""
        address = self._where
        return "" if address is None else address.full

    @property
    def _where(self) -> Url | None:
        if self._handshake is not None:
            return self._handshake.address
        return None if callable(self._config.url) else self._config.address

    @property
    def request(self) -> Request | None:
        """The request of the latest opening handshake; None before it."""
        return None if self._handshake is None else Request(self._handshake.request)

    @property
    def response(self) -> Response | None:
        """The server's answer to `request`."""
        if self._handshake is None:
            return None
        return response_of(self._handshake.response)

    @property
    def extensions(self) -> tuple[str, ...]:
        """The extensions agreed on, with their parameters."""
        response = self.response
        return () if response is None else tuple(response.headers.get_list("Sec-WebSocket-Extensions"))

    @property
    def heartbeat(self) -> HeartbeatManager | None:
        """What finds out that the server is gone, shared by clients configured alike; None when off."""
        return self._heartbeat

    @property
    def reconnect_state(self) -> ReconnectState:
        """The schedule of attempts to reconnect."""
        return self._schedule

    @property
    def _authority(self) -> str:
        address = self._where
        return "the server" if address is None else address.authority
