"""fabric.websockets: exceptions, headers, URIs and frames as `websockets` has them, by asking both."""

from __future__ import annotations

import copy
import importlib
import pickle
from typing import Any

import pytest
import websockets
from hypothesis import given
from hypothesis import strategies as st

from fabric.websockets import exceptions
from fabric.websockets.datastructures import Headers, MultipleValuesError
from fabric.websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidHeaderValue, PayloadTooBig
from fabric.websockets.frames import Close, Frame, Opcode
from fabric.websockets.http11 import Response
from fabric.websockets.version import version

OURS, THEIRS = "fabric.websockets", "websockets"


@pytest.fixture(autouse=True)
def same_release() -> None:
    if websockets.__version__ != version:
        pytest.skip(f"websockets {version} is not installed")


def both(name: str, *arguments: Any, **keywords: Any) -> tuple[Any, Any]:
    """What a function of `module.function` does in ours and in theirs: its result, or the exception, as text."""
    module, _, function = name.rpartition(".")

    def ask(package: str) -> str:
        try:
            result = getattr(importlib.import_module(f"{package}.{module}"), function)(*arguments, **keywords)
        except Exception as error:  # noqa: BLE001  (it is compared)
            return f"{type(error).__name__}: {error}"
        if hasattr(result, "__dataclass_fields__"):
            result = {key: getattr(result, key) for key in result.__dataclass_fields__}
        return repr(result)

    return ask(OURS), ask(THEIRS)


# --- exceptions --------------------------------------------------------------------------------------------

GOOD, BAD = Close(1000, ""), Close(1011, "why")
REFUSED = Response(403, "Forbidden", Headers(), b"no")

RAISED: list[tuple[str, tuple[Any, ...]]] = [
    ("ConnectionClosed", (None, None, None)),
    ("ConnectionClosedOK", (GOOD, GOOD, True)),
    ("ConnectionClosedOK", (GOOD, GOOD, False)),
    ("ConnectionClosedError", (BAD, None, None)),
    ("ConnectionClosedError", (None, BAD, None)),
    ("InvalidURI", ("http://x", "scheme isn't ws or wss")),
    ("InvalidProxy", ("x", "nonsense")),
    ("InvalidProxyStatus", (REFUSED,)),
    ("InvalidMethod", ("POST",)),
    ("InvalidProtocol", ("HTTP/1.0",)),
    ("InvalidStatus", (REFUSED,)),
    ("InvalidHeader", ("Name",)),
    ("InvalidHeader", ("Name", "")),
    ("InvalidHeader", ("Name", "value")),
    ("InvalidHeaderFormat", ("Name", "expected token", "a=|", 2)),
    ("InvalidHeaderValue", ("Name", "value")),
    ("InvalidOrigin", (None,)),
    ("InvalidOrigin", ("http://evil",)),
    ("InvalidUpgrade", ("Upgrade", None)),
    ("DuplicateParameter", ("a",)),
    ("InvalidParameterName", ("a",)),
    ("InvalidParameterValue", ("a", None)),
    ("InvalidParameterValue", ("a", "")),
    ("InvalidParameterValue", ("a", "42")),
    ("PayloadTooBig", (5, 4)),
    ("PayloadTooBig", (5, 4, 10)),
    ("PayloadTooBig", (None, 4)),
    ("TooManyFragments", (4096,)),
    ("ConcurrencyError", ("text",)),
]


@pytest.mark.parametrize(("name", "arguments"), RAISED)
def test_an_exception_says_the_same_and_can_be_copied(name: str, arguments: tuple[Any, ...]) -> None:
    error = getattr(exceptions, name)(*arguments)
    assert str(error) == str(getattr(importlib.import_module("websockets.exceptions"), name)(*arguments))
    if name != "TooManyFragments":
        for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert (type(other), str(other), other.args) == (type(error), str(error), error.args)


def test_the_tree_of_exceptions_is_the_same() -> None:
    theirs = importlib.import_module("websockets.exceptions")
    for name in exceptions.__all__:
        mro = [kind.__name__ for kind in getattr(exceptions, name).__mro__ if not kind.__name__.startswith("_")]
        assert mro == [kind.__name__ for kind in getattr(theirs, name).__mro__], name


def test_code_and_reason_are_deprecated() -> None:
    for rcvd, code, reason in ((Close(1001, "bye"), 1001, "bye"), (None, 1006, "")):
        error = ConnectionClosed(rcvd, None)
        with pytest.warns(DeprecationWarning, match="ConnectionClosed.code is deprecated"):
            assert error.code == code
        with pytest.warns(DeprecationWarning, match="ConnectionClosed.reason is deprecated"):
            assert error.reason == reason


def test_which_close_frame_came_first_is_only_known_of_two() -> None:
    for arguments in ((GOOD, None, True), (None, GOOD, False), (GOOD, GOOD, None)):
        with pytest.raises(AssertionError):
            ConnectionClosedOK(*arguments)


def test_a_payload_that_is_too_big_by_its_old_form() -> None:
    with pytest.warns(DeprecationWarning, match="change to PayloadTooBig"):
        assert str(PayloadTooBig("text")) == "text"


# --- headers -----------------------------------------------------------------------------------------------


def test_headers_behave_the_same() -> None:
    results = []
    for package in (OURS, THEIRS):
        module = importlib.import_module(f"{package}.datastructures")
        headers = module.Headers([("X-A", "1"), ("x-a", "2")], server="s")
        headers["X-B"] = "3"
        copied = headers.copy()
        del copied["x-A"]
        copied.update({"New": "n"})
        results.append(
            [
                list(headers),
                len(headers),
                headers.get_all("X-a"),
                list(headers.raw_items()),
                str(headers),
                repr(headers),
                headers.serialize(),
                "SERVER" in headers,
                headers.get("nothing"),
                5 in headers,
                headers["x-b"],
                list(copied.raw_items()),
                copied == module.Headers(server="s", **{"x-b": "3", "new": "n"}),
                headers == module.Headers(server="s"),
                headers == {},
            ]
        )
    assert results[0] == results[1]


def test_one_value_is_not_several() -> None:
    headers = Headers([("A", "1"), ("a", "2")])
    with pytest.raises(MultipleValuesError, match=r"^'A'$"):
        headers["A"]
    with pytest.raises(KeyError):
        headers["B"]
    with pytest.raises(MultipleValuesError):
        headers.get("A")
    headers.clear()
    assert list(headers.raw_items()) == []


@pytest.mark.parametrize("value", ["a\r\nb: c", "\0", "Ā"])
def test_what_breaks_out_of_a_header_is_refused(value: str) -> None:
    with pytest.raises(InvalidHeaderValue):
        Headers({"A": value})


HEADER = st.text(alphabet='ab1,;= \t"\\/|Ă', max_size=12)


@given(HEADER)
def test_header_grammar_is_the_same(header: str) -> None:
    header = header.strip(" \t")
    for name in ("connection", "upgrade", "extension", "subprotocol", "authorization_basic"):
        ours, theirs = both(f"headers.parse_{name}", header)
        assert ours == theirs, name


@pytest.mark.parametrize(
    "header",
    [
        "Basic aGVsbG86aWxvdmV5b3U=",
        "basic aGVsbG8=",
        "Basic ",
        "Basic a b",
        "Negotiate x",
        "Basic a",
        "Basic =",
        "Basic",
    ],
)
def test_credentials_are_read_the_same(header: str) -> None:
    ours, theirs = both("headers.parse_authorization_basic", header)
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("build_host", ("example.org", 80, False)),
        ("build_host", ("example.org", 443, False)),
        ("build_host", ("::1", 443, True)),
        ("build_host", ("127.0.0.1", 8080, True)),
        ("build_extension", ([("a", [("b", None), ("c", "1")]), ("d", [])],)),
        ("build_subprotocol", (["a", "b"],)),
        ("build_www_authenticate_basic", ('a"b\\',)),
        ("build_www_authenticate_basic", ("\0",)),
        ("build_authorization_basic", ("user", "pass:word")),
        ("validate_subprotocols", (["a", "b"],)),
        ("validate_subprotocols", ("chat",)),
        ("validate_subprotocols", ({"a"},)),
        ("validate_subprotocols", (["a b"],)),
    ],
)
def test_headers_are_written_the_same(name: str, arguments: tuple[Any, ...]) -> None:
    ours, theirs = both(f"headers.{name}", *arguments)
    assert ours == theirs


# --- URIs and proxies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "ws://localhost",
        "WSS://Example.ORG:8443/path?query=1",
        "wss://example.org",
        "ws://[::1]:1234/",
        "ws://user:pa%3Ass@host/",
        "ws://user@host/",
        "ws://host/#fragment",
        "http://host/",
        "ws:///path",
        "ws://høst/πass?qùéry",
        "ws://host:0/",
        "ws://host:port/",
    ],
)
def test_uris_are_read_the_same(uri: str) -> None:
    ours, theirs = both("uri.parse_uri", uri)
    assert ours == theirs


def test_a_uri_knows_what_to_ask_for_and_hides_its_password() -> None:
    parse = importlib.import_module("fabric.websockets.uri").parse_uri
    assert [parse(f"ws://h{tail}").resource_name for tail in ("", "/", "/a?b", "?b")] == ["/", "/", "/a?b", "/?b"]
    uri = parse("ws://user:secret@host")
    assert uri.user_info == ("user", "secret")
    assert "secret" not in repr(uri)
    assert parse("ws://host").user_info is None


@pytest.mark.parametrize(
    "proxy",
    [
        "http://proxy",
        "https://proxy",
        "socks5h://user:pass@proxy:1080",
        "socks4://proxy/",
        "http://user@proxy",
        "ftp://proxy",
        "http://",
        "http://proxy/path",
        "http://proxy?query",
        "http://proxy#fragment",
        "http://høst",
    ],
)
def test_proxies_are_read_the_same(proxy: str) -> None:
    ours, theirs = both("proxy.parse_proxy", proxy)
    assert ours == theirs


SETTINGS = [
    {},
    {"http_proxy": "http://a"},
    {"https_proxy": "http://a", "http_proxy": "http://b"},
    {"socks_proxy": "http://a", "https_proxy": "http://b"},
    {"socks_proxy": "socks5://a"},
    {"ws_proxy": "http://a", "socks_proxy": "http://b"},
    {"wss_proxy": "http://a", "socks_proxy": "http://b"},
    {"https_proxy": "http://a", "no_proxy": "example.org"},
    {"all_proxy": "http://a"},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("uri", ["ws://example.org", "wss://example.org"])
def test_the_environment_names_the_same_proxy(
    settings: dict[str, str], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ws", "wss", "http", "https", "socks", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    found = []
    for package in (OURS, THEIRS):
        parsed = importlib.import_module(f"{package}.uri").parse_uri(uri)
        found.append(importlib.import_module(f"{package}.proxy").get_proxy(parsed))
    assert found[0] == found[1]


def test_a_proxy_is_asked_the_same() -> None:
    asked = []
    for package in (OURS, THEIRS):
        module = importlib.import_module(f"{package}.proxy")
        uri = importlib.import_module(f"{package}.uri").parse_uri("wss://example.org/path")
        asked += [
            module.prepare_connect_request(module.parse_proxy("http://u:p@proxy"), uri),
            module.prepare_connect_request(module.parse_proxy("http://proxy"), uri, None),
        ]
    assert asked[:2] == asked[2:]


# --- frames ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"\x03", b"\x03\xe8", b"\x03\xe9bye", b"\x03\xed", b"\x0f\xa0x", b"\x03\xe8\xff"]
)
def test_close_frames_are_read_the_same(data: bytes) -> None:
    ours, theirs = [], []
    for package, found in ((OURS, ours), (THEIRS, theirs)):
        kind = importlib.import_module(f"{package}.frames").Close
        try:
            close = kind.parse(data)
            found += [close.code, close.reason, str(close)]
            found += [close.serialize()]
        except Exception as error:  # noqa: BLE001  (it is compared)
            found += [type(error).__name__, str(error)]
    assert ours == theirs


@pytest.mark.parametrize("code", [1000, 1004, 1015, 2999, 3000, 4999, 5000])
@pytest.mark.parametrize("reason", ["", "why"])
def test_a_close_code_is_explained_the_same(code: int, reason: str) -> None:
    theirs = importlib.import_module("websockets.frames").Close(code, reason)
    assert str(Close(code, reason)) == str(theirs)


@pytest.mark.parametrize(
    "arguments",
    [
        (Opcode.TEXT, b"text"),
        (Opcode.TEXT, b""),
        (Opcode.TEXT, b"x", False),
        (Opcode.BINARY, b"\xff\x00"),
        (Opcode.BINARY, b"text"),
        (Opcode.PING, b""),
        (Opcode.PING, b"\x00\xff\x00\xff"),
        (Opcode.PONG, b"pong"),
        (Opcode.CLOSE, b"\x03\xe8bye"),
        (Opcode.CLOSE, b""),
        (Opcode.TEXT, b"x" * 200),
    ],
)
def test_a_frame_is_shown_the_same(arguments: tuple[Any, ...]) -> None:
    module = importlib.import_module("websockets.frames")
    assert str(Frame(*arguments)) == str(module.Frame(module.Opcode(arguments[0]), *arguments[1:]))


def test_a_frame_is_checked() -> None:
    Frame(Opcode.TEXT, b"x" * 126, fin=False).check()
    for frame, why in (
        (Frame(Opcode.TEXT, b"", rsv1=True), "reserved bits must be 0"),
        (Frame(Opcode.PING, b"x" * 126), "control frame too long"),
        (Frame(Opcode.PING, b"", fin=False), "fragmented control frame"),
    ):
        with pytest.raises(exceptions.ProtocolError, match=why):
            frame.check()
