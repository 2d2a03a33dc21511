"""`fabric._config.addresses`: which texts name a place to listen on, a host, a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric._config.addresses import is_bind_address, is_socket_path, split_host


@pytest.mark.parametrize("text", ["h:0", ":80", "[::1]:65535", "a.b-c:1", "127.0.0.1:8080", "ü.example:1"])
def test_where_one_can_listen(text: str) -> None:
    assert is_bind_address(text)


@pytest.mark.parametrize(
    "text", ["", "h", "h:", "::1:80", "h:x", "h:65536", "h:٣", "h:" + "9" * 5000, "a b:1", "u@h:1", "h/x:1", "a..b:1"]
)
def test_where_one_cannot(text: str) -> None:
    assert not is_bind_address(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("h", ("h", None)),
        ("H.example:1", ("h.example", 1)),
        ("::1", ("::1", None)),
        ("[::1]", ("::1", None)),
        ("[::1]:80", ("::1", 80)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
    ],
)
def test_a_host_and_its_port(text: str, parts: tuple[str, int | None]) -> None:
    assert split_host(text) == parts


@given(st.text())
def test_a_host_is_taken_or_refused(text: str) -> None:
    try:
        host, port = split_host(text)
    except ValueError:
        return
    assert host
    assert port is None or 0 < port <= 65535


@pytest.mark.parametrize("path", ["/run/s", "s", "\0abstract", "ü"])
def test_a_path(path: str) -> None:
    assert is_socket_path(path)


@pytest.mark.parametrize("path", ["", "a\0b", "a\ud800"])
def test_no_path(path: str) -> None:
    assert not is_socket_path(path)
