"""`fabric._config.client`: ways to connect, headers and credentials."""

from __future__ import annotations

import base64
import socket
import ssl
from typing import Any

import pytest

from fabric._http.url import Url
from fabric.config import ClientConfig
from fabric.error import InvalidSubprotocol
from fabric.headers import HeaderMap

URL = "ws://h/"


def test_headers_are_added_and_copied() -> None:
    given_headers = HeaderMap(A="1")
    config = ClientConfig(URL, headers=given_headers)
    given_headers["A"] = "changed"
    assert config.headers == {"A": "1"}
    more = config.with_header("a", "2").with_user_agent("me").with_origin("https://o")
    assert config.headers == {"A": "1"}
    assert more.headers.getall("A") == ["1", "2"]
    assert more.headers["Origin"] == "https://o"
    assert more.with_headers([("B", "1")]).headers == {"B": "1"}
    assert more.with_headers(None).headers == {}


def test_subprotocols_keep_their_order() -> None:
    config = ClientConfig(URL).with_subprotocols("b", "a")
    assert config.subprotocols == ("b", "a")
    assert config.with_subprotocols().subprotocols == ()
    with pytest.raises(InvalidSubprotocol):
        config.with_subprotocols("a", "a")
    with pytest.raises(TypeError, match="several"):
        ClientConfig(URL, subprotocols="chat")


def test_credentials_in_the_url_become_a_header() -> None:
    config = ClientConfig("ws://me:p%40ss@h:81/x")
    assert str(config.address) == "ws://h:81/x"
    value = config.request_headers()["Authorization"]
    assert base64.b64decode(value.removeprefix("Basic ")) == b"me:p@ss"
    assert "Authorization" not in config.headers
    assert config.with_authorization("Bearer t").request_headers()["Authorization"] == "Bearer t"
    assert config.with_url("ws://other/").request_headers() == {}


@pytest.mark.parametrize(("location", "trusted"), [("/other", True), ("wss://h:444/", False), ("wss://evil/", False)])
def test_credentials_do_not_follow_to_another_origin(location: str, trusted: bool) -> None:
    config = ClientConfig("wss://me:pass@h/").with_api_key("k").with_cookie("a", "b").with_header("X-Room", "1")
    sent = config.request_headers(config.address.join(location))
    assert sent["X-Room"] == "1"
    assert ("Authorization" in sent, "Cookie" in sent, "X-API-Key" in sent) == (trusted,) * 3
    assert "Authorization" not in config.with_authorization("x").request_headers(Url.parse("wss://evil/"))


def test_one_way_to_connect() -> None:
    with socket.socket() as sock:
        assert ClientConfig(URL, sock=sock).sock is sock
        with pytest.raises(ValueError, match="None, because sock is given"):
            ClientConfig(URL, sock=sock, unix_path="/tmp/x")
    with pytest.raises(ValueError, match="None, because proxy is given"):
        ClientConfig(URL, proxy=True, unix_path="/tmp/x")
    context = ssl.create_default_context()
    assert ClientConfig("wss://h/", ssl=context).ssl is context


def test_a_socket_is_a_stream_and_a_refused_one_stays_open() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, other:
        assert ClientConfig(URL, sock=one).sock is one
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    secure = ssl.create_default_context().wrap_socket(socket.socket(), server_hostname="h")
    for sock in (datagrams, secure):
        with sock:
            with pytest.raises(ValueError, match=r"ClientConfig\.sock = <.+>: expected a connected stream socket"):
                ClientConfig(URL, sock=sock)
            assert sock.fileno() >= 0


@pytest.mark.parametrize("login", ["me:hunter2" + "ä" * 128, "me:" + "hunter2" * 37, "hunter2" * 37])
def test_an_error_about_a_socks_login_names_the_proxy_and_shows_no_secret(login: str) -> None:
    with pytest.raises(ValueError, match=r"ClientConfig\.proxy = 'socks5://\*\*\*@p'.*255 bytes") as caught:
        ClientConfig(URL, proxy=f"socks5://{login}@p")
    assert "hunter2" not in str(caught.value)
    assert "ä" not in str(caught.value)


def test_a_unix_path_may_be_abstract() -> None:
    assert ClientConfig(URL, unix_path="\0name").unix_path == "\0name"


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        (None, None),
        ("example.org", ("example.org", None)),
        ("example.org:8443", ("example.org", 8443)),
        ("10.0.0.7:80", ("10.0.0.7", 80)),
        ("::1", ("::1", None)),
        ("[::1]:443", ("::1", 443)),
    ],
)
def test_another_host(host: str | None, endpoint: object) -> None:
    assert ClientConfig(URL, host=host).endpoint == endpoint
    assert ClientConfig(URL).with_host(host).address.host == "h"


def test_a_host_is_reached_by_name_alone_or_through_a_proxy() -> None:
    assert ClientConfig(URL, host="a", proxy="http://p").host == "a"
    with socket.socket() as sock, pytest.raises(ValueError, match="None, because sock is given"):
        ClientConfig(URL, host="a", sock=sock)
    with pytest.raises(ValueError, match="None, because unix_path is given"):
        ClientConfig(URL, host="a", unix_path="/run/s")


def test_a_name_for_the_certificate() -> None:
    config = ClientConfig("wss://h/").with_server_hostname("other.example")
    assert config.server_hostname == "other.example"
    for wrong in ("other.example:443", "a b", "", "https://x"):
        with pytest.raises(
            ValueError, match=r"ClientConfig\.server_hostname = .*: expected a name or an address, without"
        ):
            config.with_server_hostname(wrong)


def test_a_context_may_be_a_function() -> None:
    async def later() -> ssl.SSLContext:
        raise AssertionError

    for source in (ssl.create_default_context, lambda: None, later):
        assert ClientConfig("wss://h/", ssl=source).ssl is source
    with pytest.raises(ValueError, match="None, because the url is not wss://"):
        ClientConfig(URL, ssl=ssl.create_default_context)


def test_a_proxy_may_be_false() -> None:
    assert ClientConfig(URL, proxy=False) == ClientConfig(URL)


def test_what_belongs_to_a_proxy() -> None:
    context = ssl.create_default_context()
    for proxy in ("https://p", True):
        assert ClientConfig(URL, proxy=proxy, proxy_ssl=context).proxy_ssl is context
    for proxy in ("http://p", "https://p", True):
        assert ClientConfig(URL, proxy=proxy, proxy_headers={"A": "b"}).proxy_headers == {"A": "b"}
    with pytest.raises(ValueError, match="None, because the proxy is not https://"):
        ClientConfig(URL, proxy="http://p", proxy_ssl=context)
    with pytest.raises(ValueError, match="none, because the proxy is not http://"):
        ClientConfig(URL, proxy="socks5://p", proxy_headers={"A": "b"})
    config = ClientConfig(URL, proxy="http://p", proxy_headers=HeaderMap({"Proxy-Authorization": "hunter2"}))
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ping_interval", r"heartbeat=HeartbeatConfig\(ping_interval=\.\.\.\)"),
        ("max_attempts", r"reconnect=ReconnectConfig\(max_attempts=\.\.\.\)"),
        ("ping_intervall", r"heartbeat=HeartbeatConfig\(ping_interval=\.\.\.\)"),
        ("conection_timeout", "connection_timeout"),
        ("max_size", "max_message_size"),
        ("open_timeout", "connection_timeout"),
        ("timeout", "connection_timeout"),
        ("additional_headers", "headers"),
        ("origin", "headers=.*Origin.*"),
    ],
)
def test_an_unknown_option_tells_which_was_meant(name: str, meant: str) -> None:
    options: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError, match=rf"ClientConfig has no option '{name}': did you mean {meant}\?"):
        ClientConfig(URL, **options)
