"""The options that type checkers see are the fields of the configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from fabric._config.options import ClientOptions, ServerOptions
from fabric._config.validation import Converted
from fabric.config import ClientConfig, ServerConfig
from support.type_checkers import mypy, pyright, require_pyright

PROGRAMS = {
    "WebSocketClient.connect(URL, ping_intervall=3)": 'Unexpected keyword argument "ping_intervall"',
    "WebSocketClient.connect(URL, max_message_size='1')": 'Argument "max_message_size"',
    "WebSocketClient.connect(URL, 80)": "Argument 2",
    "WebSocketClient.connect(URL, reconnect=True)": 'Argument "reconnect"',
    "WebSocketClient.connect(URL, on_message=lambda client: None)": 'Argument "on_message"',
    "WebSocketClient.connect(URL, on_connect=5)": 'Argument "on_connect"',
    "WebSocketServer.bind(ADDRESS, ping_intervall=3)": 'Unexpected keyword argument "ping_intervall"',
    "WebSocketServer.bind(ADDRESS, backlog=None)": 'Argument "backlog"',
    "WebSocketServer.bind(ADDRESS, lambda client, path: None)": 'Argument 2 to "bind"',
    "WebSocketServer.bind(ADDRESS, on_message=print_it)": 'Argument "on_message"',
    "await client.send(5)": 'Argument 1 to "send"',
    "client.send('x')": "must be used",
    "client.send_nowait(5)": 'Argument 1 to "send_nowait"',
    "client.config.max_message_size.bit_lenth()": 'no attribute "bit_lenth"',
    "(await client.recv()).text": 'has no attribute "text"',  # None after the end
    "Message('1').json(int) + 'a'": "Unsupported operand types",
    "Message('1').json(int | str) + 1": "Unsupported operand types",
    "Message('1').parse_json(list[int]).apend(1)": 'has no attribute "apend"',
    "Message('1').text + 1": "Unsupported operand types",
    "Message.text(5)": 'incompatible type "int"',
    "client.remote_addr.upper()": 'has no attribute "upper"',  # it may be a tuple
    "host, port = client.local_addr": "object is not iterable",  # None before the first connection
    "await pooled.send(5)": 'Argument 1 to "send"',
    "await server.broadcast(5)": 'Argument 1 to "broadcast"',
    "(await rpc.call('price', type=Quote)).prize": 'has no attribute "prize"',
    "(await rpc.call('price', type=int | str)) + 1": "Unsupported operand types",
    "async for quote in rpc.stream('ticks', type=Quote): quote.prize": 'has no attribute "prize"',
    "await rpc.call(5)": "No overload variant",
    "await rpc.call('price', timeout='1')": "No overload variant",
    "rpc.notify('price')": "must be used",
}
"""A line of a program, and a part of what mypy says of it."""

RIGHT = """
async for message in client:
    text: str = message.text
    number: int = message.json(int)
    either: int | str = message.json(int | str)
    several: list[int] = message.parse_json(list[int])
    made: Message = Message.text("a")
    data: str | bytes = message.data
    assert message == "a"
await client.send(b"x")
for sendable in given:
    await client.send(sendable)
    await pooled.send(sendable)
    await server.broadcast(sendable)
address: Address | None = client.remote_addr
if isinstance(address, tuple):
    host: str = address[0]
    port: int = address[1]
quote: Quote = await rpc.call("price", "EURUSD", type=Quote, timeout=1)
quotes: list[Quote] = await rpc.call("all", type=list[Quote], timeout=timedelta(seconds=1), idempotent=True)
either_quote: Quote | None = await rpc.call("maybe", type=Quote | None)
async for tick in rpc.stream("ticks", "EURUSD", type=Quote):
    quote = tick
await client.send(message for message in ["a", "b"])
await WebSocketClient.connect(URL, on_message=lambda client, message: client.send_nowait(message))
await WebSocketClient.connect(URL, connection_timeout=timedelta(seconds=1), reconnect=False, headers={"A": "b"})
await WebSocketClient.connect(ClientConfig(URL), max_redirects=2)
WebSocketServer.bind(ADDRESS, max_connections=5, origins=["https://a", None])
"""

PROGRAM = """
from datetime import timedelta
from collections.abc import Sequence
from dataclasses import dataclass
from fabric import Address, ClientConfig, ConnectedClient, Message, PooledClient, Sendable, WebSocketClient
from fabric import WebSocketServer
from fabric.rpc import Rpc

@dataclass
class Quote:
    price: float

URL, ADDRESS = "ws://127.0.0.1:1", "127.0.0.1:0"

def print_it(client: ConnectedClient) -> None: ...

async def main(
    client: WebSocketClient, pooled: PooledClient, server: WebSocketServer, rpc: Rpc, given: Sequence[Sendable]
) -> None:
"""


def given(annotation: Any) -> Any:
    """What the constructor takes for a field of this type."""
    return get_args(annotation)[0] if get_origin(annotation) is Converted else annotation


@pytest.mark.parametrize(
    ("options", "config", "address"),
    [(ClientOptions, ClientConfig, "url"), (ServerOptions, ServerConfig, "bind")],
    ids=["client", "server"],
)
def test_options_are_the_fields_of_the_config(options: type, config: type, address: str) -> None:
    types = get_type_hints(config)
    names = [field.name for field in dataclasses.fields(config)]
    assert names[0] == address
    assert get_type_hints(options) == {name: given(types[name]) for name in names[1:]}
    assert list(get_type_hints(options)) == names[1:]


LINES = RIGHT.strip().splitlines()
WRONG = PROGRAM.count("\n") + len(LINES) + 1
"""The first line that is wrong."""


def written(folder: Path) -> Path:
    """A program with the lines that are right, and then those that are wrong."""
    program = folder.resolve() / "program.py"
    program.write_text(PROGRAM + "".join(f"    {line}\n" for line in [*LINES, *PROGRAMS]))
    return program


def test_mypy_accepts_what_is_right_and_finds_what_is_wrong(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    found = mypy(tmp_path, [written(tmp_path)])
    assert not [objection for objection in found if objection.line < WRONG]
    for number, (line, expected) in enumerate(PROGRAMS.items(), WRONG):
        said = [objection.text for objection in found if objection.line == number]
        assert any(expected in text for text in said), (line, expected, said)


def test_pyright_does_so_too(tmp_path: Path, require: Callable[[object, str], None]) -> None:
    require_pyright(require)
    found = {objection.line for objection in pyright(tmp_path, [written(tmp_path)])}
    assert found == set(range(WRONG, WRONG + len(PROGRAMS)))
