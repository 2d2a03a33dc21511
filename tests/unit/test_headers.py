"""`fabric.headers`: what may be sent, what is shown, and how lists are read."""

from __future__ import annotations

import base64
import contextlib
import copy
import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from fabric.config import ClientConfig
from fabric.error import InvalidHeader
from fabric.headers import (
    HeaderMap,
    HeaderName,
    HeaderValue,
    ListItem,
    is_sensitive,
    is_token,
    parse_items,
    parse_list,
    valid_headers,
)

TCHAR = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # RFC 9110 §5.6.2
tokens = st.text(TCHAR, min_size=1, max_size=12)
quotable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12)
items = st.builds(
    ListItem,
    tokens,
    st.lists(st.tuples(tokens, st.none() | quotable), max_size=4).map(tuple),
)


# Names and values


@pytest.mark.parametrize("char", [chr(i) for i in range(256)])
def test_a_name_is_made_of_token_characters(char: str) -> None:
    if char in TCHAR:
        assert HeaderName(f"X{char}") == f"X{char}"
    else:
        with pytest.raises(InvalidHeader, match="token"):
            HeaderName(f"X{char}")


def test_a_name_is_not_empty_and_a_str() -> None:
    with pytest.raises(InvalidHeader):
        HeaderName("")
    with pytest.raises(TypeError, match="bytes"):
        HeaderName(b"X")  # type: ignore[arg-type]


@pytest.mark.parametrize("char", [chr(i) for i in range(32) if i != 9] + ["\x7f"])
def test_a_value_has_no_control_characters(char: str) -> None:
    for value in (char, f"a{char}", f"{char}a", f"a{char}b"):
        with pytest.raises(InvalidHeader, match="X-It") as caught:
            HeaderValue(value, "X-It")
        assert caught.value.name == "X-It"


def test_a_value_may_hold_tabs_and_text_and_loses_outer_blanks() -> None:
    assert HeaderValue(" \ta\tb é 🙂 \t") == "a\tb é 🙂"


def test_a_value_is_a_str() -> None:
    with pytest.raises(TypeError, match=r"'N'.*int"):
        HeaderMap({"N": 3})  # type: ignore[arg-type]


def test_bytes_that_a_transport_let_through_become_text() -> None:
    assert HeaderValue(b"caf\xc3\xa9".decode("ascii", "surrogateescape")) == "café"
    assert HeaderValue(b"caf\xe9".decode("ascii", "surrogateescape")) == "café"
    with pytest.raises(InvalidHeader):
        HeaderValue("\ud800")


@given(st.text())
def test_any_value_that_passes_can_be_written(text: str) -> None:
    try:
        value = HeaderValue(text)
    except InvalidHeader:
        return
    line = value.encode()
    assert not set(line) & {0, 10, 13}


# Maps


def test_names_have_no_case_and_several_values() -> None:
    headers = HeaderMap([("Via", "a"), ("X", "1"), ("VIA", "b")])
    assert headers.getall("via") == ["a", "b"]
    headers["vIa"] = "c"
    assert headers.getall("Via") == ["c"]
    assert isinstance(headers, CIMultiDict)


def _put(how: str, headers: HeaderMap, name: str, value: str) -> object:
    ways: dict[str, Callable[[], object]] = {
        "add": lambda: headers.add(name, value),
        "set": lambda: headers.__setitem__(name, value),
        "setdefault": lambda: headers.setdefault(name, value),
        "extend": lambda: headers.extend([(name, value)]),
        "update": lambda: headers.update({name: value}),
        "merge": lambda: headers.merge({name: value}),
        "pairs": lambda: HeaderMap([(name, value)]),
        "mapping": lambda: HeaderMap({name: value}),
        "keywords": lambda: HeaderMap(**{name: value}),
        "builder": lambda: headers.with_header(name, value),
        "builder of all": lambda: headers.with_headers({name: value}),
    }
    return ways[how]()


WAYS_IN = [
    "add",
    "set",
    "setdefault",
    "extend",
    "update",
    "merge",
    "pairs",
    "mapping",
    "keywords",
    "builder",
    "builder of all",
]


@pytest.mark.parametrize("how", WAYS_IN)
@pytest.mark.parametrize(("name", "value"), [("X", "a\r\nY: b"), ("X", "a\0"), ("X\n", "a"), ("X:", "a"), ("", "a")])
def test_nothing_gets_in_unchecked(how: str, name: str, value: str) -> None:
    headers = HeaderMap()
    with pytest.raises(InvalidHeader):
        _put(how, headers, name, value)
    assert not headers


@pytest.mark.parametrize("how", WAYS_IN)
def test_every_way_in_works(how: str) -> None:
    headers = HeaderMap()
    made = _put(how, headers, "X", " a ")
    result = made if isinstance(made, HeaderMap) else headers
    assert list(result.items()) == [("X", "a")]
    assert type(result["X"]) is str


def test_an_object_with_keys_is_enough() -> None:
    class Keyed:
        def keys(self) -> list[str]:
            return ["A", "B"]

        def __getitem__(self, key: str) -> str:
            return key.lower()

    assert HeaderMap(Keyed()) == {"A": "a", "B": "b"}


def test_update_replaces_and_extend_adds_and_merge_leaves() -> None:
    headers = HeaderMap(A="1")
    headers.extend({"a": "2"})
    assert headers.getall("A") == ["1", "2"]
    headers.merge({"a": "3"})
    assert headers.getall("A") == ["1", "2"]
    headers.update({"a": "4"})
    assert headers.getall("A") == ["4"]
    assert headers.setdefault("a", "5") == "4"


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h)), HeaderMap.copy]
)
def test_copies_are_maps_of_the_same_kind(duplicate: object) -> None:
    headers = HeaderMap([("A", "1"), ("a", "2"), ("Cookie", "secret")])
    twin = duplicate(headers)  # type: ignore[operator]
    assert type(twin) is HeaderMap
    assert list(twin.items()) == list(headers.items())
    assert "secret" not in repr(twin)


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "PROXY-AUTHORIZATION",
        "Cookie",
        "Set-Cookie",
        "X-API-Key",
        "X-Auth-Token",
        "X-Auth",
        "X-Authorization",
        "Api-Key",
        "X-Amz-Security-Token",
        "X-Secret",
        "X-Session-Id",
        "X-Password",
    ],
)
def test_credentials_are_not_shown(name: str) -> None:
    headers = HeaderMap({name: "hunter2", "Host": "example"})
    for text in (repr(headers), str(headers), f"{headers}"):
        assert "hunter2" not in text
        assert "example" in text
        assert name in text
    assert headers[name] == "hunter2"


@pytest.mark.parametrize("name", ["Host", "Origin", "User-Agent", "Sec-WebSocket-Key", "WWW-Authenticate", "X-Author"])
def test_other_headers_are_shown(name: str) -> None:
    assert not is_sensitive(name)


def test_builders_change_a_copy() -> None:
    empty = HeaderMap()
    full = (
        empty.with_header("X", "1")
        .with_header("x", "2")
        .with_bearer("t")
        .with_user_agent("me/1")
        .with_origin("https://a.example")
        .with_cookie("a", "1")
        .with_cookie("b=2; c=3")
        .with_api_key("k")
    )
    assert not empty
    assert full.getall("X") == ["1", "2"]
    assert full["Authorization"] == "Bearer t"
    assert full["User-Agent"] == "me/1"
    assert full["Origin"] == "https://a.example"
    assert full.getall("Cookie") == ["a=1; b=2; c=3"]
    assert full["X-API-Key"] == "k"


def test_with_headers_replaces_all_as_the_config_does() -> None:
    headers = HeaderMap(A="1")
    for given_headers in ({"B": "2"}, [("B", "2")], HeaderMap(B="2")):
        changed = headers.with_headers(given_headers)
        assert type(changed) is HeaderMap
        assert changed == ClientConfig("ws://h/", headers=headers).with_headers(given_headers).headers == {"B": "2"}
    assert headers == {"A": "1"}
    assert headers.with_headers(None) == {}


def test_every_builder_of_headers_is_there() -> None:
    for name in (
        "with_header with_headers with_authorization with_bearer with_basic_auth with_user_agent with_origin"
        " with_cookie with_api_key"
    ).split():
        assert callable(getattr(HeaderMap, name))
        assert callable(getattr(ClientConfig, name))


def test_authorization_replaces() -> None:
    headers = HeaderMap().with_authorization("Digest x").with_basic_auth("ü", "p:q")
    (value,) = headers.getall("authorization")
    scheme, _, token = value.partition(" ")
    assert scheme == "Basic"
    assert base64.b64decode(token).decode() == "ü:p:q"
    with pytest.raises(ValueError, match="colon"):
        HeaderMap().with_basic_auth("a:b", "c")


@pytest.mark.parametrize(("name", "value"), [("a b", "c"), ("a", "c;d=e"), ("a", "c,d"), ("a", 'c"'), ("a", "b c")])
def test_a_cookie_cannot_smuggle_another(name: str, value: str) -> None:
    with pytest.raises(InvalidHeader):
        HeaderMap().with_cookie(name, value)


def test_a_cookie_value_may_be_quoted_or_empty() -> None:
    assert HeaderMap().with_cookie("a", '"b"').with_cookie("c", "")["Cookie"] == 'a="b"; c='


# Lists


@pytest.mark.parametrize(
    ("lines", "elements"),
    [
        (["keep-alive, Upgrade"], ["keep-alive", "Upgrade"]),
        (["keep-alive", "Upgrade"], ["keep-alive", "Upgrade"]),
        (["a,b"], ["a", "b"]),
        ([" a\t,\t b , c"], ["a", "b", "c"]),
        ([",a,,b,", ""], ["a", "b"]),
        (['a; x="1,2", b'], ['a; x="1,2"', "b"]),
        (['"\\",", b'], ['"\\","', "b"]),
        ([], []),
        ([""], []),
    ],
)
def test_lists(lines: list[str], elements: list[str]) -> None:
    assert parse_list("X", lines) == elements


@pytest.mark.parametrize("line", ['"', 'a, "b', 'a"b, c', '"\\"', 'x="a\\'])
def test_a_quoted_string_must_end(line: str) -> None:
    with pytest.raises(InvalidHeader, match="'X-List'"):
        parse_list("X-List", ["fine", line])


def test_a_long_hostile_list_takes_linear_time() -> None:
    for line in ('"' * 16_001, '"\\' * 8_000, ", " * 8_000, "a;" * 8_000, 'a; b="' + '\\"' * 8_000):
        with contextlib.suppress(InvalidHeader):
            parse_items("X", [line])


def test_items_with_parameters() -> None:
    lines = [
        "permessage-deflate; client_max_window_bits; server_max_window_bits=10 , permessage-deflate",
        'x;a="10"; a = "q\\"s" ;b',
    ]
    assert parse_items("E", lines) == [
        ListItem("permessage-deflate", (("client_max_window_bits", None), ("server_max_window_bits", "10"))),
        ListItem("permessage-deflate"),
        ListItem("x", (("a", "10"), ("a", 'q"s'), ("b", None))),
    ]
    assert parse_items("E", []) == []
    assert HeaderMap([("E", lines[0]), ("e", "x")]).get_list("E") == [*lines[0].split(" , "), "x"]
    assert HeaderMap().get_list("E") == []


def test_headers_that_were_found_valid_are_taken_as_they_are() -> None:
    headers = valid_headers([("X", "a"), ("x", "\udcff")])
    assert type(headers) is HeaderMap
    assert headers.getall("X") == ["a", "\udcff"]


@pytest.mark.parametrize(
    "line",
    ["; a", "a;", "a; ;b", "a; =1", "a; b=", "a; b=c d", "a b", '"a"', 'a; b="c"d', "a; b==c", "a=b", "é"],
)
def test_items_that_are_none(line: str) -> None:
    with pytest.raises(InvalidHeader):
        parse_items("X", [line])


@given(st.lists(items, max_size=5), st.booleans())
def test_items_are_read_as_they_are_written(written: list[ListItem], one_line: bool) -> None:
    lines = [str(item) for item in written]
    assert parse_items("X", [", ".join(lines)] if one_line else lines) == written


@given(st.lists(st.text(st.sampled_from('ab",;= \\\t')), max_size=4))
def test_the_list_parser_raises_nothing_else(lines: list[str]) -> None:
    try:
        parsed = parse_items("X", lines)
    except InvalidHeader:
        return
    assert all(is_token(item.name) for item in parsed)
