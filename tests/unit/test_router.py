"""`Router`: which path goes where, what the handler gets, and which routes are none."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from fabric import ConnectedClient, HandshakeFailed, Request, Router, WebSocketClient
from support.raw_peer import RawPeer
from support.serving import serve

ID = uuid.uuid4()


async def handler(client: ConnectedClient, **parameters: Any) -> None:
    raise AssertionError


def router(*paths: str) -> Router:
    made = Router()
    for path in paths:
        made.add(path, handler)
    return made


FITS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("/", "/", {}),
    ("/", "", None),
    ("/", "//", None),
    ("/rooms", "/rooms", {}),
    ("/rooms", "/rooms/", None),
    ("/rooms", "/ROOMS", None),
    ("/a.b+c", "/a.b+c", {}),
    ("/a.b+c", "/axb+c", None),
    ("/rooms/{name}", "/rooms/hall", {"name": "hall"}),
    ("/rooms/{name}", "/rooms/", None),
    ("/rooms/{name}", "/rooms/a/b", None),
    ("/rooms/{name}", "/rooms/gr%C3%BCn%20%2F%3F", {"name": "grün /?"}),
    ("/rooms/{name}/{more:str}", "/rooms/a/b", {"name": "a", "more": "b"}),
    ("/{a}-{b}", "/1-2-3", {"a": "1-2", "b": "3"}),
    ("/users/{id:int}", "/users/42", {"id": 42}),
    ("/users/{id:int}", "/users/-7", {"id": -7}),
    ("/users/{id:int}", "/users/007", {"id": 7}),
    ("/users/{id:int}", "/users/x", None),
    ("/users/{id:int}", "/users/1.5", None),
    ("/users/{id:int}", "/users/" + "9" * 18, {"id": 10**18 - 1}),
    ("/users/{id:int}", "/users/" + "9" * 5000, None),
    ("/jobs/{id:uuid}", f"/jobs/{ID}", {"id": ID}),
    ("/jobs/{id:uuid}", f"/jobs/{str(ID).upper()}", {"id": ID}),
    ("/jobs/{id:uuid}", f"/jobs/{ID.hex}", None),
    ("/files/{path:path}", "/files/a/b%20c/", {"path": "a/b c/"}),
    ("/files/{path:path}", "/files/", None),
    ("/files/{path:path}/tail", "/files/a/b/tail", {"path": "a/b"}),
]


@pytest.mark.parametrize(("route", "path", "parameters"), FITS)
def test_what_fits(route: str, path: str, parameters: dict[str, Any] | None) -> None:
    expected = None if parameters is None else (handler, parameters)
    assert router(route).match(path) == expected


def test_the_first_that_fits_is_taken() -> None:
    async def other(client: ConnectedClient) -> None:
        raise AssertionError

    made = Router()
    made.add("/rooms/hall", other)
    made.add("/rooms/{name}", handler)
    assert made.match("/rooms/hall") == (other, {})
    assert made.match("/rooms/yard") == (handler, {"name": "yard"})
    assert repr(made) == "<Router, 2 routes>"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "rooms",
        "/rooms?x=1",
        "/rooms#x",
        "/a b",
        "/é",
        "/{",
        "/}",
        "/{a",
        "/a}",
        "/{}",
        "/{a b}",
        "/{1}",
        "/{a}/{a}",
        "/{client}",
        "/{a:float}",
        "/{a:}x{",
        "/{{a}}",
    ],
)
def test_what_is_no_route(path: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        Router().route(path)
    with pytest.raises(ValueError, match="route"):
        router(path)


def test_a_route_has_one_handler() -> None:
    with pytest.raises(ValueError, match="the route '/a' has a handler already"):
        router("/a", "/a")


def test_a_handler_has_to_take_what_it_gets() -> None:
    async def one(client: ConnectedClient, room: str) -> None:
        raise AssertionError

    made = Router()
    made.add("/{room}", one)
    for path in ("/x", "/{hall}", "/{room}/{more}"):
        with pytest.raises(TypeError, match=r"the handler of .* is called with \(client"):
            made.add(path, one)
    wrong: Any = lambda client: None  # noqa: E731
    with pytest.raises(TypeError, match="cannot be awaited"):
        made.add("/y", wrong)
    with pytest.raises(TypeError, match="a route is a str"):
        made.add(wrong, handler)


def test_the_decorator_leaves_the_function_as_it_is() -> None:
    made = Router()
    assert made.route("/{a}")(handler) is handler
    assert made.match("/1") == (handler, {"a": "1"})


def test_plain_http_is_told_that_there_is_nothing() -> None:
    answer = router("/a").respond(Request(b"GET /b?token=x HTTP/1.1\r\nHost: x"))
    assert answer is not None
    assert answer.status == 404
    assert router("/a").respond(Request(b"GET http://x/a?token=x HTTP/1.1\r\nHost: x")) is None


async def test_on_a_server(stack: Any) -> None:
    made = Router()

    @made.route("/rooms/{name}/{seat:int}")
    async def room(client: ConnectedClient, name: str, seat: int) -> None:
        await client.send(f"{name}, seat {seat}, {client.request.query}")

    @made.route("/echo")
    async def echo(client: ConnectedClient) -> None:
        async for message in client:
            await client.send(message)

    seen: list[str] = []
    server = await serve(stack, made, process_request=lambda request: seen.append(request.path))
    url = f"ws://127.0.0.1:{server.port}"
    async with WebSocketClient.connect(f"{url}/rooms/gr%C3%BCn/7?a=b", auto_reconnect=False) as client:
        assert (await client.recv()).as_text() == "grün, seat 7, {'a': 'b'}"  # type: ignore[union-attr]
    async with WebSocketClient.connect(f"{url}/echo") as client:
        await client.send("x")
        assert (await client.recv()).as_text() == "x"  # type: ignore[union-attr]
    with pytest.raises(HandshakeFailed) as refused:
        await WebSocketClient.connect(f"{url}/nowhere")
    assert (refused.value.status, refused.value.body) == (404, b"there is nothing at this path\n")
    assert seen == ["/rooms/grün/7", "/echo", "/nowhere"]
    assert server.metrics.refusals == {404: 1}


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_what_process_request_answers_is_the_answer(stack: Any, kind: str) -> None:
    def process(request: Any) -> Any:
        if request.path == "/health":
            return 200, {}, "ok"
        return (101, {"X-Seen": "yes"}, "") if request.path == "/echo" else None

    async def process_later(request: Any) -> Any:
        return process(request)

    made = Router()

    @made.route("/echo")
    async def echo(client: ConnectedClient) -> None:
        await client.wait_closed()

    server = await serve(stack, made, process_request=process if kind == "plain" else process_later)
    for path, status in (("/health", 200), ("/echo", 426), ("/nowhere", 404)):
        async with await RawPeer.connect(server.port) as peer:
            peer.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await peer.read_answer()).status == status
    async with WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/echo") as client:
        assert client.response is not None
        assert client.response.headers["X-Seen"] == "yes"


async def test_as_the_handler_of_another_kind_it_closes(stack: Any) -> None:
    made = router("/a")

    async def first(client: ConnectedClient) -> None:
        await made(client)

    server = await serve(stack, first)
    async with WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/b", auto_reconnect=False) as client:
        await client.wait_closed()
        assert client.close_code == 1008
