"""`fabric._config.headers`: what the user may set."""

from __future__ import annotations

from typing import Any

import pytest

from fabric._config.headers import own_headers
from fabric.config import ClientConfig, ServerConfig
from fabric.error import InvalidHeader
from fabric.headers import HeaderMap

URL = "ws://h/"


@pytest.mark.parametrize("name", ["Upgrade", "connection", "Host", "Sec-WebSocket-Key", "sec-websocket-protocol"])
@pytest.mark.parametrize("config", [ClientConfig(URL), ServerConfig()])
def test_headers_of_the_handshake_are_its_own(config: Any, name: str) -> None:
    with pytest.raises(InvalidHeader, match=name):
        config.with_header(name, "x")
    with pytest.raises(InvalidHeader):
        config.with_header("A", "x\r\nB: y")


@pytest.mark.parametrize("name", ["Host", "connection", "Content-Length", "Transfer-Encoding"])
def test_headers_of_a_connect_request_are_its_own(name: str) -> None:
    with pytest.raises(InvalidHeader, match=rf"{name}.*CONNECT"):
        ClientConfig(URL, proxy="http://p", proxy_headers={name: "x"})
    assert own_headers({"Upgrade": "x", "Sec-WebSocket-Key": "y"}, for_proxy=True)["upgrade"] == "x"


def test_it_is_a_copy() -> None:
    given = HeaderMap({"A": "1"})
    own = own_headers(given)
    given["A"] = "2"
    assert own == {"A": "1"}
    assert own_headers(None) == {}
