"""The public names are those of the contract, and each module can be imported first."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fabric
import fabric_ext

CONTRACT = set(
    """
    WebSocketClient WebSocketServer ConnectedClient State Request Response Message MessageType Frame
    ClientConfig ServerConfig ReconnectConfig HeartbeatConfig BackpressureConfig CompressionConfig
    RateLimitConfig PoolConfig
    ConnectionPool PooledClient PoolStats ServerPoolStats CleanupStats ReconnectState
    BackpressureController HeartbeatManager Compressor Decompressor Fragmenter Reassembler ConnectionId
    SubprotocolList SubprotocolNegotiator HeaderMap HeaderName HeaderValue RateLimiter GlobalRateLimiter
    RateLimitType RateLimitStatus MetricsCollector LatencyPercentiles

    Error ConnectionFailed ConnectionClosed ReconnectTimeout InvalidFrame MessageTooLarge Utf8Error
    BufferFull BackpressureTimeout Timeout RateLimitExceeded ConnectionLimitExceeded HandshakeFailed Tls
    AuthenticationFailed SubprotocolNegotiationFailed InvalidSubprotocol InvalidHeader CompressionError
    JsonError NotSupported InvalidState Io

    VERSION DEFAULT_MAX_MESSAGE_SIZE DEFAULT_PING_INTERVAL DEFAULT_PING_TIMEOUT DEFAULT_BUFFER_SIZE
    DEFAULT_CONNECTION_TIMEOUT

    run Router basic_auth Address Sendable
    """.split()
)

MODULES = """
    client server message config reconnect backpressure heartbeat metrics pool compression fragmentation
    subprotocol headers ratelimit error runner router auth rpc testing sync
""".split()

EVERY_MODULE = [
    f"{package.__name__}.{module.name}"
    for package in (fabric, fabric_ext)
    for module in pkgutil.iter_modules(package.__path__)
    if module.name not in {"__main__", "otel", "prometheus"}  # the first runs, the others need an extra
]


def test_all_is_the_contract() -> None:
    assert set(fabric.__all__) - {"__version__"} == CONTRACT
    assert len(fabric.__all__) == len(set(fabric.__all__))


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_every_public_name_is_there(name: str) -> None:
    assert hasattr(fabric, name)


def test_constants_have_the_values_of_the_contract() -> None:
    assert fabric.__version__ == fabric.VERSION
    assert fabric.DEFAULT_MAX_MESSAGE_SIZE == 10 * 1024 * 1024
    assert fabric.DEFAULT_PING_INTERVAL == 30
    assert fabric.DEFAULT_PING_TIMEOUT == 10
    assert fabric.DEFAULT_BUFFER_SIZE == 1000
    assert fabric.DEFAULT_CONNECTION_TIMEOUT == 5


@pytest.mark.parametrize("name", MODULES)
def test_every_public_module_says_what_it_exports(name: str) -> None:
    module = importlib.import_module(f"fabric.{name}")
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing


@pytest.mark.parametrize("module", EVERY_MODULE)
def test_each_module_imports_in_a_fresh_interpreter(module: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", f"import {module}"], check=True, timeout=60)


def test_importing_needs_no_optional_package() -> None:
    blocked = (
        "prometheus_client",
        "prompt_toolkit",
        "websockets",
        "aiohttp",
        "Cython",
        "setuptools",
        "uvicorn",
        "opentelemetry",
    )
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); from fabric import *"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# Imported when it is asked for.


def test_each_name_is_known_to_type_checkers_as_it_is_at_run_time() -> None:
    tree = ast.parse(Path(fabric.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module != "typing"
        for alias in node.names
    }
    assert typed == fabric._HOMES
    assert {*typed, "VERSION", "__version__"} == set(fabric.__all__)


def test_what_there_is_can_be_listed_and_what_there_is_not_cannot_be_had() -> None:
    listed = dir(fabric)
    assert {*fabric.__all__, *MODULES, "websockets", "broker"} <= set(listed)
    assert not [name for name in listed if name.startswith("_") and not hasattr(fabric, name)]
    for name in ("no_such_name", "_private", "__wrapped__"):
        assert not hasattr(fabric, name)
        with pytest.raises(AttributeError, match=f"module 'fabric' has no attribute '{name}'"):
            getattr(fabric, name)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_had_as_an_attribute(name: str) -> None:
    program = f"import fabric; assert fabric.{name}.__name__ == 'fabric.{name}'"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def imported_by(code: str) -> set[str]:
    """The modules that there are after `code`."""
    command = [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"]
    return set(subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("import fabric", "asyncio typing fabric_ext picows"),
        (
            "from fabric import WebSocketClient",
            "fabric.server fabric.pool urllib.request zstandard email difflib msgspec aiofastnet python_socks",
        ),
        (
            "from fabric import WebSocketServer",
            "fabric.client fabric.pool zstandard fabric._server.dashboard picows.api python_socks aiofastnet",
        ),
        ("from fabric import ClientConfig, Message", "fabric.client fabric.server msgspec aiofastnet picows.api"),
    ],
)
def test_only_what_is_needed_is_imported(imported: str, absent: str) -> None:
    assert (imported_by(imported) - imported_by("pass")) & set(absent.split()) == set()


@pytest.mark.parametrize(
    "use",
    [
        "import picows; picows.ws_connect; picows.api; picows.picows; picows.common",
        "from picows import *; ws_connect",
        "from picows import ws_connect, picows; picows.WSTransport",
        "import picows.websockets; picows.websockets.connect",
        "import picows.proxy, picows; picows.WSTransport; picows.__version__",
        "import picows; assert not hasattr(picows, 'no_such_name'); assert 'ws_connect' in dir(picows)",
    ],
)
def test_the_api_of_picows_can_be_used_afterwards(use: str) -> None:
    """Of picows only the compiled module is imported; the package is executed when it is asked for a name."""
    program = f"import fabric.client; {use}; from fabric_ext.transport import Transport; import picows; "
    program += "assert picows.WSTransport in Transport.__mro__"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


def test_threads_that_use_picows_at_once_wait_until_it_is_there() -> None:
    program = """
import threading, fabric.client, picows
found = []
barrier = threading.Barrier(8)
def use():
    barrier.wait()
    found.append(picows.ws_connect and picows.ws_create_server)
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(found) == 8
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
