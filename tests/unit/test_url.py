"""`fabric._http.url`: valid addresses, credentials that stay hidden, redirects that stay safe."""

from __future__ import annotations

import base64
import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric._http.url import PROXY_SCHEMES, Url, redact


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "resource", "authority"),
    [
        ("ws://localhost", "ws", "localhost", 80, "/", "localhost"),
        ("wss://h", "wss", "h", 443, "/", "h"),
        ("WSS://H.Example:443/Path", "wss", "h.example", 443, "/Path", "h.example"),
        ("ws://h:443/", "ws", "h", 443, "/", "h:443"),
        ("ws://h?a=b&c", "ws", "h", 80, "/?a=b&c", "h"),
        ("ws://h/a%20b/ü?ö=%C3%A4", "ws", "h", 80, "/a%20b/%C3%BC?%C3%B6=%C3%A4", "h"),
        ("ws://127.0.0.1:8080/", "ws", "127.0.0.1", 8080, "/", "127.0.0.1:8080"),
        ("ws://[::1]:9/x", "ws", "::1", 9, "/x", "[::1]:9"),
        ("ws://[2001:DB8::1]/", "ws", "2001:db8::1", 80, "/", "[2001:db8::1]"),
        ("ws://bücher.example/", "ws", "xn--bcher-kva.example", 80, "/", "xn--bcher-kva.example"),
        ("ws://under_score.example./", "ws", "under_score.example.", 80, "/", "under_score.example."),
        ("ws://h/a@b", "ws", "h", 80, "/a@b", "h"),
    ],
)
def test_parts(text: str, scheme: str, host: str, port: int, resource: str, authority: str) -> None:
    url = Url.parse(text)
    assert (url.scheme, url.host, url.port, url.resource) == (scheme, host, port, resource)
    assert url.authority == authority
    assert url.is_secure is (scheme == "wss")
    assert Url.parse(url.full) == url
    assert url.authorization is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "ws://"),
        ("localhost:8080", "ws://"),
        ("//h/", "ws://"),
        ("http://h/", "ws:// or wss://"),
        ("ws:", "no host"),
        ("ws:///path", "no host"),
        ("ws://:80/", "no host"),
        ("ws://h:0/", "port"),
        ("ws://h:65536/", "port"),
        ("ws://h:-1/", "port"),
        ("ws://h:x/", "port"),
        ("ws://h/#f", "fragment"),
        ("ws://h/#", "fragment"),
        ("ws://h/a b", "spaces"),
        ("ws://h/a\r\nHost: x", "spaces or control"),
        ("ws://h\t/", "spaces"),
        ("ws://h/\ud800", "surrogates"),
        ("ws://[fe80::1%ä]/", "host"),
        ("ws://a..b/", "host"),
        ("ws://-a/", "host"),
        ("ws://%41/", "host"),
        ("ws://" + "a" * 64 + "/", "63 between dots"),
        ("ws://" + "a." * 128 + "a/", "at most 254 characters"),
        ("ws://[::1/", "expected"),
        ("ws://[zz]/", "expected|host"),
        ("ws://..ü/", "host"),
    ],
)
def test_what_is_no_address(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Url.parse(text)


@pytest.mark.parametrize("value", [None, 3, b"ws://h"])
def test_an_address_is_a_str(value: object) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        Url.parse(value)  # type: ignore[arg-type]


@given(st.text() | st.text(st.sampled_from("ws:/[]@#?%.é\t1a")).map("ws://".__add__))
def test_anything_else_than_an_address_is_a_value_error(text: str) -> None:
    try:
        url = Url.parse(text)
    except ValueError:
        return
    for whole in (str(url), url.full):
        assert whole.isascii()
        assert whole.isprintable()
        assert " " not in whole
    assert Url.parse(url.full) == replace(url, username=None, password=None)


def test_credentials_are_decoded_and_never_shown() -> None:
    url = Url.parse("wss://us%40er:p%3A%2Fä@h/x")
    assert (url.username, url.password) == ("us@er", "p:/ä")
    assert str(url) == "wss://h/x"
    assert "us@er" not in repr(url)
    assert "p:/" not in repr(url)
    scheme, _, token = (url.authorization or "").partition(" ")
    assert scheme == "Basic"
    assert base64.b64decode(token).decode() == "us@er:p:/ä"
    assert pickle.loads(pickle.dumps(url)) == url


@pytest.mark.parametrize("text", ["ws://h/x?token=hunter2", "ws://h?hunter2", "wss://u:p@h:1/a?b=hunter2&c=?d"])
def test_a_query_is_never_shown_but_kept(text: str) -> None:
    url = Url.parse(text)
    assert "hunter2" in url.resource
    assert "hunter2" in url.full
    for shown in (str(url), repr(url), f"{url}", repr([url]), redact(text)):
        assert "hunter2" not in shown
        assert "?***" in shown
    for wrong in (text.replace("ws", "ftp", 1), text + "#x", text + " ", text.replace("h", "a..h", 1)):
        with pytest.raises(ValueError) as caught:
            Url.parse(wrong)
        assert "hunter2" not in str(caught.value)
    assert url.join("?b=hunter2").resource.endswith("?b=hunter2")
    with pytest.raises(ValueError) as caught:
        Url.parse("wss://h/").join(text.replace("wss", "ws"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["ws://[fe80::1%25eth0]:8080/x", "ws://[fe80::1%eth0]:8080/x"])
def test_the_zone_of_an_address_is_for_this_machine_alone(text: str) -> None:
    url = Url.parse(text)
    assert url.host == "fe80::1%eth0"
    assert url.authority == "[fe80::1]:8080"
    assert str(url) == "ws://[fe80::1]:8080/x"
    assert url.full == "ws://[fe80::1%25eth0]:8080/x"
    assert Url.parse(url.full) == url
    assert url.join("/y").host == url.host


def test_a_name_without_a_password() -> None:
    url = Url.parse("ws://me@h/")
    assert (url.username, url.password) == ("me", "")


@pytest.mark.parametrize(
    "text",
    [
        "ws://user:hunter2@h:0/",
        "ws://user:hunter2@h/#x",
        "http://user:hunter2@h/",
        "ws://user:hunt/hunter2@h/",
        "ws://user:a#hunter2@h/",
        "ws://us%3Aer:hunter2@h/",
        "ws://user:hunter2@/",
        "ws://user:\nhunter2@h/",
        "ws://user:hunter2@[zz]/",
        "ws://user:hunter2@\nh/",
        "ws://user:hunter2\ud800@h/",
    ],
)
def test_an_error_shows_no_password(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Url.parse(text)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "hunter2" not in redact(text)


@pytest.mark.parametrize(
    ("text", "port"),
    [("http://p", 80), ("https://p", 443), ("socks5://p", 1080), ("socks5h://u:p@p:99", 99)],
)
def test_proxies(text: str, port: int) -> None:
    assert Url.parse(text, PROXY_SCHEMES).port == port
    with pytest.raises(ValueError, match="socks5"):
        Url.parse("ws://p", PROXY_SCHEMES)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize(
    ("login", "why"),
    [
        ("me:hunter2" + "%C3%A4" * 128, "at most 255 bytes"),
        ("hunter2" + "ä" * 128 + ":x", "at most 255 bytes"),
        ("me:" + "hunter2" * 37, "at most 255 bytes"),
        ("hunter2" * 37 + ":x", "at most 255 bytes"),
    ],
)
def test_a_login_that_socks_cannot_carry(scheme: str, login: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        Url.parse(f"{scheme}://{login}@p", PROXY_SCHEMES)
    assert "hunter2" not in str(caught.value)
    assert "ä" not in str(caught.value)
    assert Url.parse(f"http://{login}@p", PROXY_SCHEMES).authorization  # HTTP can


def test_a_login_that_socks_just_can_carry() -> None:
    url = Url.parse(f"socks5://{'u' * 255}:{'p' * 255}@p", PROXY_SCHEMES)
    assert (url.username, url.password) == ("u" * 255, "p" * 255)


@pytest.mark.parametrize(
    ("start", "location", "target"),
    [
        ("ws://h/a/b?c", "d", "ws://h/a/d"),
        ("ws://h/a/b", "/d?e#f", "ws://h/d?e"),
        ("ws://h/a", "//other/x", "ws://other/x"),
        ("ws://h/a", "wss://h/a", "wss://h/a"),
        ("ws://h/a", "https://h/a", "wss://h/a"),
        ("wss://h/a", "HTTPS://h:444/a", "wss://h:444/a"),
        ("ws://h/a", "http://h/b", "ws://h/b"),
    ],
)
def test_redirects(start: str, location: str, target: str) -> None:
    assert Url.parse(start).join(location).full == target


@pytest.mark.parametrize(
    ("location", "kept"),
    [
        ("/b", True),
        ("wss://h:443/b", True),
        ("https://h/", True),
        ("wss://evil@h/b", True),
        ("wss://h:444/b", False),
        ("wss://other/b", False),
        ("wss://h.other/b", False),
        ("//evil:x@other/", False),
    ],
)
def test_credentials_stay_with_their_origin(location: str, kept: bool) -> None:
    url = Url.parse("wss://user:secret@h/a").join(location)
    assert (url.username, url.password) == (("user", "secret") if kept else (None, None))


@pytest.mark.parametrize("location", ["ws://h/", "http://h/", "HTTP://other/"])
def test_a_redirect_does_not_give_encryption_up(location: str) -> None:
    with pytest.raises(ValueError, match="must not lead"):
        Url.parse("wss://h/").join(location)


@pytest.mark.parametrize("location", ["ftp://h/", "http://", "ws://h:99999/", "javascript:alert(1)", "ws://h/a b"])
def test_a_redirect_may_lead_nowhere(location: str) -> None:
    with pytest.raises(ValueError, match=r"expected|host|spaces"):
        Url.parse("ws://h/").join(location)
