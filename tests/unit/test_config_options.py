"""The options that type checkers see are the fields of the configs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

import fabric
from fabric._config.options import ClientOptions, ServerOptions
from fabric._config.validation import Converted
from fabric.config import ClientConfig, ServerConfig

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
await client.send(message for message in ["a", "b"])
await WebSocketClient.connect(URL, on_message=lambda client, message: client.send_nowait(message))
await WebSocketClient.connect(URL, connection_timeout=timedelta(seconds=1), reconnect=False, headers={"A": "b"})
await WebSocketClient.connect(ClientConfig(URL), max_redirects=2)
WebSocketServer.bind(ADDRESS, max_connections=5, origins=["https://a", None])
"""

PROGRAM = """
from datetime import timedelta
from fabric import ClientConfig, ConnectedClient, Message, WebSocketClient, WebSocketServer

URL, ADDRESS = "ws://127.0.0.1:1", "127.0.0.1:0"

def print_it(client: ConnectedClient) -> None: ...

async def main(client: WebSocketClient) -> None:
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


def written(path: Path, body: str) -> Path:
    """A program with these lines in it."""
    program = path / "program.py"
    program.write_text(PROGRAM + "".join(f"    {line}\n" for line in body.strip().splitlines()))
    return program


def mypy(path: Path, body: str) -> list[str]:
    """What mypy says of a program with these lines in it, in strict mode."""
    program = written(path, body)
    config = path / "mypy.ini"
    config.write_text(f"[mypy]\nstrict = True\ncache_dir = {path / 'cache'}\n")
    command = [sys.executable, "-m", "mypy", "--config-file", config, "--no-error-summary", program]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr
    return run.stdout.splitlines()


def test_mypy_accepts_what_is_right_and_finds_what_is_wrong(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    lines = RIGHT.strip().splitlines()
    first = PROGRAM.count("\n") + 1
    found = mypy(tmp_path, "\n".join([*lines, *PROGRAMS]))
    wrong = {number: line for line in found if (number := int(line.split(":")[1])) and ": error:" in line}
    assert not [line for number, line in wrong.items() if number < first + len(lines)]
    for number, (line, expected) in enumerate(PROGRAMS.items(), first + len(lines)):
        said = [text for text in found if int(text.split(":")[1]) == number]
        assert any(expected in text for text in said), (line, expected, said)


PYRIGHT = Path(__file__).parents[1] / "interop" / "node" / "node_modules" / ".bin" / "pyright"


def pyright(path: Path, body: str) -> set[int]:
    """The lines of a program with these lines in it of which pyright says that they are wrong."""
    written(path, body)
    settings = {"extraPaths": [str(Path(fabric.__file__).parents[1])], "typeCheckingMode": "standard"}
    (path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [PYRIGHT, "--project", path, "--pythonpath", sys.executable, "--outputjson"]
    run = subprocess.run(command, cwd=path, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode in (0, 1), run.stderr
    found = json.loads(run.stdout)["generalDiagnostics"]
    return {each["range"]["start"]["line"] + 1 for each in found if each["severity"] == "error"}


def test_pyright_does_so_too(tmp_path: Path, require: Callable[[object, str], None]) -> None:
    require(PYRIGHT.exists(), "pyright is not installed: make test does it where there is npm")
    lines = RIGHT.strip().splitlines()
    first = PROGRAM.count("\n") + 1
    found = pyright(tmp_path, "\n".join([*lines, *PROGRAMS]))
    assert found == set(range(first + len(lines), first + len(lines) + len(PROGRAMS)))
