"""`basic_auth`: whom it lets in, what it tells the others, and what it refuses to be made of."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from fabric import AuthenticationFailed, Request, Response, WebSocketClient, basic_auth
from support.serving import Held, serve


def request(*values: str) -> Request:
    lines = ["GET / HTTP/1.1", "Host: x", *(f"Authorization: {value}" for value in values)]
    return Request("\r\n".join(lines).encode("utf-8", "surrogateescape"))


def basic(text: str | bytes) -> str:
    data = text if isinstance(text, bytes) else text.encode()
    return f"Basic {base64.b64encode(data).decode()}"


def ask(process: Callable[[Request], Any], *values: str) -> tuple[Response | None, dict[str, Any]]:
    asked = request(*values)
    answer = process(asked)
    assert answer is None or isinstance(answer, Response)
    return answer, asked.state


MANY = {"ada": "s3cret", "grace": "p:ss wörd", "": ""}


@pytest.mark.parametrize(
    "credentials", [MANY, list(MANY.items()), tuple(MANY.items()), (pair for pair in MANY.items())], ids=type
)
def test_those_who_know_their_password(credentials: Any) -> None:
    process = basic_auth(credentials=credentials)
    for username, password in MANY.items():
        for scheme in ("Basic", "basic", "BASIC"):
            value = basic(f"{username}:{password}").replace("Basic", scheme)
            assert ask(process, value) == (None, {"username": username})


def test_one_pair() -> None:
    assert ask(basic_auth(credentials=("ada", "s3cret")), basic("ada:s3cret")) == (None, {"username": "ada"})


WRONG = {
    "nothing": [],
    "another password": [basic("ada:secret")],
    "no password": [basic("ada:")],
    "of another": [basic("ada:p:ss wörd")],
    "nobody known": [basic("eve:s3cret")],
    "nobody, no password": [basic("eve:")],
    "no colon": [basic("ada")],
    "not UTF-8": [basic(b"ada:\xff")],
    "another scheme": ["Bearer s3cret"],
    "no base64": ["Basic !!!"],
    "base64 with something else": ["Basic " + basic("ada:s3cret")[6:10] + "!" + basic("ada:s3cret")[10:]],
    "not ASCII": ["Basic é"],
    "not even UTF-8": ["Basic \udcff"],
    "empty": [""],
    "only a scheme": ["Basic"],
    "twice": [basic("ada:s3cret"), basic("ada:s3cret")],
}


@pytest.mark.parametrize("case", WRONG)
def test_those_who_do_not(case: str) -> None:
    answer, state = ask(basic_auth("the feed", {"ada": "s3cret", "grace": "p:ss wörd"}), *WRONG[case])
    assert answer is not None
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="the feed", charset="UTF-8"'
    assert b"s3cret" not in answer.body
    assert state == {}


def test_a_realm_is_quoted() -> None:
    answer, _ = ask(basic_auth('a "b" \\', {"ada": "x"}))
    assert answer is not None
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="a \\"b\\" \\\\", charset="UTF-8"'
    for wrong in ("a\r\nX: y", "é", "\x00"):
        with pytest.raises(ValueError, match="realm"):
            basic_auth(wrong, {"ada": "x"})


def test_what_it_cannot_be_made_of() -> None:
    wrong: list[tuple[dict[str, Any], type[Exception]]] = [
        ({}, ValueError),
        ({"credentials": MANY, "check_credentials": lambda *_: True}, ValueError),
        ({"credentials": "ada:s3cret"}, TypeError),
        ({"credentials": [("ada",)]}, TypeError),
        ({"credentials": {"ada": b"s3cret"}}, TypeError),
        ({"credentials": ("a:da", "x")}, ValueError),
        ({"credentials": 5}, TypeError),
        ({"check_credentials": 5}, TypeError),
    ]
    for options, error in wrong:
        with pytest.raises(error):
            basic_auth(**options)


async def test_a_function_decides() -> None:
    asked: list[tuple[str, str]] = []

    def check(username: str, password: str) -> bool:
        asked.append((username, password))
        return password == "right"

    async def check_later(username: str, password: str) -> bool:
        return check(username, password)

    plain, later = basic_auth(check_credentials=check), basic_auth(check_credentials=check_later)
    assert ask(plain, basic("ada:right")) == (None, {"username": "ada"})
    answer, _ = ask(plain, basic("ada:wrong"))
    assert answer is not None
    good, bad = request(basic("ada:right")), request(basic("ada:wrong"))
    assert await later(good) is None
    assert (await later(bad)).status == 401
    assert (good.state, bad.state) == ({"username": "ada"}, {})
    assert asked == [("ada", "right"), ("ada", "wrong")] * 2


async def test_on_a_server(stack: Any) -> None:
    held = Held()
    server = await serve(stack, held, process_request=basic_auth("x", {"ada": "s3cret"}))
    async with WebSocketClient.connect(f"ws://ada:s3cret@127.0.0.1:{server.port}/"):
        assert (await held.next()).state_data == {"username": "ada"}
    with pytest.raises(AuthenticationFailed) as refused:
        await WebSocketClient.connect(f"ws://ada:guess@127.0.0.1:{server.port}/")
    assert refused.value.status == 401
    assert refused.value.challenge == 'Basic realm="x", charset="UTF-8"'
