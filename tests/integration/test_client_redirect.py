"""Redirects: which are followed, and what goes along."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import ClientConfig
from fabric.error import HandshakeFailed
from fabric.message import Frame
from integration.raw import RawServer, Visit

CREDENTIALS = {
    "Authorization": "Bearer t",
    "Cookie": "a=b",
    "X-API-Key": "k",
    "Proxy-Authorization": "Basic p",
    "X-Plain": "stays",
}


class Chain:
    """A server that redirects: `places` maps a path to (status, location); others are accepted."""

    def __init__(self, places: dict[str, tuple[int, str | None]]) -> None:
        self.places = places
        self.requests: list[dict[str, str]] = []

    async def __call__(self, visit: Visit) -> None:
        headers = await visit.request()
        self.requests.append(headers)
        path = headers[""].split(" ")[1]
        if path in self.places:
            status, location = self.places[path]
            lines = [f"HTTP/1.1 {status} Elsewhere", "Content-Length: 4"]
            visit.send(*lines, *([f"Location: {location}"] if location is not None else []), body=b"away")
            return
        visit.accepted(headers)
        if (await visit.frame()).opcode == 8:
            visit.writer.write(Frame(opcode=8, payload=b"\x03\xe8").encode())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_each_status_is_followed(status: int) -> None:
    chain = Chain({"/": (status, "/end?x=1")})
    async with RawServer(chain) as server, WebSocketClient.connect(server.url) as client:
        assert client.request is not None
        assert client.request.target == "/end?x=1"
        assert client.url == server.url
    assert [request[""] for request in chain.requests] == ["GET / HTTP/1.1", "GET /end?x=1 HTTP/1.1"]
    assert chain.requests[0]["sec-websocket-key"] != chain.requests[1]["sec-websocket-key"]


@pytest.mark.parametrize("fields", [[], ["Content-Length: soon"]], ids=["no length", "a wrong length"])
async def test_a_redirect_on_a_connection_that_stays_open(fields: list[str]) -> None:
    async def handle(visit: Visit) -> None:
        if server.visits == 1:
            await visit.request()
            visit.send("HTTP/1.1 302 Found", "Location: /end", *fields, body=b"away")
        else:
            await visit.accept()
        await visit.until_closed()

    async with RawServer(handle) as server:
        client = await WebSocketClient.connect(server.url, connection_timeout=1, close_timeout=0.1)
        assert client.request is not None
        assert client.request.target == "/end"
        await client.close()


async def test_relative_locations_and_http_schemes_are_understood() -> None:
    chain = Chain({"/a/b": (302, "c"), "/a/c": (302, "../d"), "/d": (302, "http://127.0.0.1:PORT/e")})
    async with RawServer(chain) as server:
        chain.places["/d"] = (302, f"http://127.0.0.1:{server.port}/e")
        async with WebSocketClient.connect(f"ws://user:pass@127.0.0.1:{server.port}/a/b"):
            pass
    assert [request[""].split()[1] for request in chain.requests] == ["/a/b", "/a/c", "/d", "/e"]
    assert all(request["authorization"].startswith("Basic ") for request in chain.requests)


async def test_credentials_do_not_leave_for_another_origin() -> None:
    end = Chain({})
    async with RawServer(end) as other, RawServer(Chain({})) as server:
        start = server._handle
        assert isinstance(start, Chain)
        start.places["/"] = (307, f"ws://eve:evil@127.0.0.1:{other.port}/end")
        for address, config in (
            (server.url, CREDENTIALS),
            (server.url.replace("//", "//user:pass@"), {"X-Plain": "stays"}),
        ):
            async with WebSocketClient.connect(ClientConfig(address, headers=config)):
                pass
    for request in end.requests:
        assert request["x-plain"] == "stays"
        assert not {"authorization", "cookie", "x-api-key", "proxy-authorization"} & set(request)
    assert start.requests[0]["authorization"] == "Bearer t"
    assert start.requests[1]["authorization"].startswith("Basic ")


async def test_there_is_an_end_to_it() -> None:
    chain = Chain({"/": (302, "/")})
    async with RawServer(chain) as server:
        with pytest.raises(HandshakeFailed, match="more than 3 redirects") as info:
            await WebSocketClient.connect(server.url, max_redirects=3)
        assert len(chain.requests) == 4
        assert info.value.status == 302
        assert info.value.body == b"away"
        with pytest.raises(HandshakeFailed) as info:
            await WebSocketClient.connect(server.url, max_redirects=0)
        assert len(chain.requests) == 5
        assert info.value.headers is not None
        assert info.value.headers["Location"] == "/"


@pytest.mark.parametrize("how", ["sock", "unix_path"])
@pytest.mark.parametrize("location", ["ws://elsewhere.invalid/", "/there"])
async def test_a_socket_of_the_users_leads_to_one_server(tmp_path: Path, how: str, location: str) -> None:
    chain = Chain({"/": (302, location)})
    path = str(tmp_path / "socket")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await chain(Visit(reader, writer))
        writer.close()
        await writer.wait_closed()

    options: dict[str, Any] = {"unix_path": path}
    async with await asyncio.start_unix_server(serve, path):
        if how == "sock":
            options = {"sock": socket.socket(socket.AF_UNIX)}
            options["sock"].connect(path)
        with pytest.raises(HandshakeFailed, match=r"302 Found$") as info:
            await WebSocketClient.connect("ws://localhost/", **options)
    assert (info.value.status, info.value.body) == (302, b"away")
    assert len(chain.requests) == 1


@pytest.mark.parametrize(
    ("status", "location"),
    [
        (302, None),
        (302, "ftp://127.0.0.1/"),
        (302, "ws://bad host/"),
        (302, "ws://"),
        (300, "/elsewhere"),
        (304, "/elsewhere"),
    ],
)
async def test_what_cannot_be_followed_is_a_failed_handshake(status: int, location: str | None) -> None:
    async with RawServer(Chain({"/": (status, location)})) as server:
        with pytest.raises(HandshakeFailed) as info:
            await WebSocketClient.connect(server.url)
    assert info.value.status == status
