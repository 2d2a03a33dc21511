"""fabric.websockets: the names and signatures of `websockets`, and how it takes that package's place."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import pytest
import websockets as theirs

import fabric.websockets as ours

MODULES = """
    asyncio.client asyncio.connection asyncio.router asyncio.server client datastructures exceptions extensions.base
    extensions.permessage_deflate frames headers http11 proxy sync.client sync.connection sync.router sync.server
    typing uri version
""".split()
LEFT_OUT = {"ClientProtocol", "Protocol", "ServerProtocol", "Side"}
DEPRECATED = {
    "WebSocketClientProtocol": "ClientConnection",
    "WebSocketServerProtocol": "ServerConnection",
    "WebSocketServer": "Server",
}


@pytest.fixture(autouse=True)
def same_release() -> None:
    if theirs.__version__ != ours.__version__:
        pytest.skip(f"websockets {ours.__version__} is not installed")


def run(program: str) -> str:
    """What a program prints in a fresh interpreter."""
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_every_public_name_is_there_or_says_why_not() -> None:
    for name in theirs.__all__:
        if name in LEFT_OUT:
            with pytest.raises(AttributeError, match=f"no {name}: it offers the asyncio and the threading interface"):
                getattr(ours, name)
        else:
            assert getattr(ours, name).__module__.split(".")[0] in {"fabric", "typing", "types", "builtins", "_io"}
    assert set(theirs.__all__) - LEFT_OUT <= set(ours.__all__)
    assert set(ours.__all__) <= set(dir(ours))


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'fabric.websockets' has no attribute 'nonsense'$"):
        ours.nonsense  # noqa: B018


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_the_public_names(name: str) -> None:
    module = importlib.import_module(f"fabric.websockets.{name}")
    wanted = set(importlib.import_module(f"websockets.{name}").__all__) - {"ClientProtocol"}
    assert [each for each in sorted(wanted) if not hasattr(module, each)] == []


@pytest.mark.parametrize("name", ["WebSocketClientProtocol", "WebSocketServerProtocol", "WebSocketServer"])
def test_names_of_the_legacy_interface_warn(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"fabric.websockets.{name} is deprecated"):
        assert getattr(ours, name) is getattr(ours, DEPRECATED[name])


def test_legacy_exceptions_can_be_caught() -> None:
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        kinds = ours.InvalidStatusCode, ours.AbortHandshake, ours.RedirectHandshake  # type: ignore[attr-defined]
    assert all(issubclass(kind, ours.InvalidHandshake) for kind in kinds)
    assert str(kinds[0](404, ours.Headers())) == "server rejected WebSocket connection: HTTP 404"
    assert str(kinds[1](403, {"X": "y"}, b"no")) == "HTTP 403, 1 headers, 2 bytes"
    assert str(kinds[2]("ws://other")) == "redirect to ws://other"


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    found = []
    for each in inspect.signature(function).parameters.values():
        default = each.default
        if inspect.isfunction(default):
            default = default.__name__
        found.append((each.name, each.kind, default))
    return found


@pytest.mark.parametrize(
    "name",
    [
        "asyncio.client.connect",
        "asyncio.client.unix_connect",
        "asyncio.client.ClientConnection",
        "asyncio.server.serve",
        "asyncio.server.unix_serve",
        "asyncio.server.ServerConnection",
        "asyncio.server.Server.close",
        "asyncio.server.basic_auth",
        "asyncio.server.broadcast",
        "asyncio.connection.Connection.recv_streaming",
        "asyncio.connection.Connection.close",
        "asyncio.connection.Connection.ping",
        "asyncio.connection.Connection.pong",
        "asyncio.router.Router",
        "sync.client.connect",
        "sync.client.reconnect",
        "sync.client.unix_connect",
        "sync.client.unix_reconnect",
        "sync.client.ClientConnection",
        "sync.connection.Connection.recv_streaming",
        "sync.connection.Connection.close",
        "sync.connection.Connection.wait_closed",
        "sync.connection.Connection.ping",
        "sync.connection.Connection.pong",
        "sync.router.Router",
        "sync.router.route",
        "sync.server.serve",
        "sync.server.unix_serve",
        "sync.server.ServerConnection",
        "sync.server.Server",
        "sync.server.Server.shutdown",
        "sync.server.basic_auth",
        "sync.server.broadcast",
        "client.backoff",
        "exceptions.PayloadTooBig",
        "extensions.permessage_deflate.ClientPerMessageDeflateFactory",
        "extensions.permessage_deflate.ServerPerMessageDeflateFactory",
        "http11.Request.serialize",
        "uri.WebSocketURI",
    ],
)
def test_signatures_are_the_same(name: str) -> None:
    def find(package: str) -> Any:
        parts = name.split(".")
        count = next(i for i, part in enumerate(parts) if part[0].isupper() or i == len(parts) - 1)
        found: Any = importlib.import_module(".".join([package, *parts[:count]]))
        for part in parts[count:]:
            found = getattr(found, part)
        return found

    assert parameters(find("fabric.websockets")) == parameters(find("websockets"))


def test_constants_are_the_same() -> None:
    for module, names in {
        "http11": "USER_AGENT SERVER MAX_NUM_HEADERS MAX_LINE_LENGTH MAX_BODY_SIZE",
        "client": "BACKOFF_INITIAL_DELAY BACKOFF_MIN_DELAY BACKOFF_MAX_DELAY BACKOFF_FACTOR",
        "asyncio.client": "MAX_REDIRECTS",
        "frames": "CLOSE_CODE_EXPLANATIONS EXTERNAL_CLOSE_CODES OK_CLOSE_CODES DATA_OPCODES CTRL_OPCODES",
        "version": "version tag commit",
    }.items():
        mine, other = (importlib.import_module(f"{p}.{module}") for p in ("fabric.websockets", "websockets"))
        for name in names.split():
            assert getattr(mine, name) == getattr(other, name), name


def test_after_install_it_is_websockets() -> None:
    program = """
import fabric.websockets as ours
ours.install()
ours.install()
import websockets, websockets.asyncio.client, websockets.exceptions as exceptions
from websockets.asyncio.server import serve
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.sync.client import connect
import fabric.websockets.sync.client
assert connect is fabric.websockets.sync.client.connect
import fabric.websockets.asyncio.server
assert websockets is ours and websockets.connect is ours.connect
assert serve is fabric.websockets.asyncio.server.serve
assert exceptions.ConnectionClosed is ours.ConnectionClosed
assert ours.__spec__.name == ours.__name__ == "fabric.websockets"
try:
    import websockets.trio
except ModuleNotFoundError as error:
    print(error.name, error)
"""
    assert run(program) == (
        "websockets.trio fabric.websockets stands for websockets, and has no websockets.trio:"
        " it offers the asyncio and the threading interface\n"
    )


def test_it_is_too_late_to_install_once_websockets_is_imported() -> None:
    program = """
import websockets, fabric.websockets
try:
    fabric.websockets.install()
except RuntimeError as error:
    print(error)
"""
    assert run(program) == "websockets has been imported already: call install() before anything imports it\n"


def test_it_needs_no_websockets() -> None:
    program = """
import sys
sys.modules["websockets"] = None
import fabric.websockets as ours
for name in ours.__all__:
    getattr(ours, name)
import fabric.websockets.legacy.client, fabric.websockets.legacy.server, fabric.websockets.legacy.protocol
import fabric.websockets.client, fabric.websockets.server
print("fine")
"""
    assert run(program) == "fine\n"


def test_importing_it_imports_no_more_than_is_asked_for() -> None:
    program = "import fabric.websockets, sys; print('fabric.websockets.asyncio.client' in sys.modules)"
    assert run(program) == "False\n"
