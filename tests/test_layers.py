"""Who may import whom: the layers of the architecture, read from the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Lowest first. A module imports only what stands before it, here or in a lower layer; so there are no cycles.
LAYERS = {
    "leaves": """
        fabric_ext.clock fabric_ext.bucket fabric_ext.counters fabric_ext.deflate fabric_ext.histogram
        fabric_ext.http_head fabric_ext.interrupts fabric_ext.mask fabric_ext.message fabric_ext.sequence
        fabric_ext.assembler fabric_ext.frames fabric_ext.protocol fabric_ext.awaitable fabric_ext.ring
        fabric_ext.watermarks fabric_ext.fanout
    """,
    "core": """
        fabric_ext.receive_queue fabric_ext.read_buffer fabric_ext.transport fabric_ext.writer fabric_ext.throttle
        fabric_ext.session_user fabric_ext.sender fabric_ext.closing fabric_ext.session fabric_ext.poller
        fabric_ext.connection fabric_ext.broadcast fabric_ext.plain_connection fabric_ext.asgi fabric_ext.topics
        fabric_ext.remote fabric_ext.outgoing fabric_ext.driver fabric_ext.blocking fabric_ext.plain_blocking fabric_ext
    """,
    "vocabulary": """
        fabric._version fabric._namesake fabric.error fabric._http.url fabric.headers fabric.message fabric.subprotocol
        fabric._http.messages fabric._http fabric._handshake.proxy_header fabric._handshake.rules
        fabric._config.validation fabric._config.defaults fabric._config.addresses fabric._config.headers
        fabric.history fabric._history.log fabric._connection.events
    """,
    "policies": """
        fabric._config.compression fabric._config.policies fabric._config.client fabric._config.server
        fabric._config.options fabric._config
        fabric.config fabric.compression fabric.fragmentation fabric.reconnect fabric.backpressure
        fabric.heartbeat fabric.ratelimit fabric.metrics fabric.prometheus
    """,
    "endpoints": """
        fabric._connection.liveness fabric._connection.open_context
        fabric._connection.callbacks fabric._connection.fork fabric._connection.nodelay fabric._connection.tracing
        fabric._connection fabric._connection.base
        fabric._handshake.descriptors fabric._handshake.tls fabric._handshake.response_reader fabric._handshake.socks
        fabric._handshake.dial fabric._handshake.client fabric._handshake.server fabric._handshake.acceptor
        fabric._handshake
        fabric._client.heartbeats fabric._client.report fabric._client fabric.client
        fabric._sync.loop fabric._sync.keeper fabric._sync fabric.sync
        fabric.router fabric.auth
        fabric._server.handover fabric._server.listening fabric._server.dashboard
        fabric._server
        fabric.broker fabric._history.logs fabric._history.shared
        fabric._history fabric._topics.settings fabric._topics.arrivals
        fabric._topics.delivery fabric._topics.gaps fabric._topics fabric.topics
        fabric._fleet.wire fabric._fleet.directory fabric._fleet.membership fabric._fleet fabric.fleet
        fabric._centrifuge.wire fabric._centrifuge fabric.centrifuge
        fabric._server.negotiation fabric._server.connected_client fabric._server.connections fabric._server.broadcast
        fabric.server fabric.runner
        fabric._workers.report fabric._workers.channel fabric._workers.child fabric._workers.process
        fabric._workers.addresses fabric._workers.balance fabric._workers.page fabric._workers.supervisor
        fabric._workers fabric.workers fabric.websockets
        fabric._asgi.messages fabric._asgi.worker fabric._asgi fabric.asgi
    """,
    "top": """
        fabric._rpc.wire fabric._rpc.methods fabric._rpc fabric.rpc fabric.otel fabric._pool.host fabric._pool
        fabric.pool fabric fabric.testing fabric.cli fabric.__main__
    """,
}
ORDER = [module for row in LAYERS.values() for module in row.split()]
LAYER = {module: layer for layer, row in LAYERS.items() for module in row.split()}
PACKAGES = (
    "fabric.cli",
    "fabric.broker",
    "fabric.testing",
    "fabric.websockets",
)  # each stands as a whole where its name stands

# What a layer must not know of at run time.
FORBIDDEN = {
    "leaves": {"asyncio", "picows", "socket", "uvloop"},
    "vocabulary": {"asyncio", "picows", "socket", "uvloop"},
    "policies": {"picows", "socket", "uvloop"},
}
# The types of the property `client.server`, of the clients that have names, and of those that speak a protocol.
UPWARD = {
    ("fabric._server.connected_client", "fabric.server"),
    ("fabric.fleet", "fabric._server.connected_client"),
    ("fabric.centrifuge", "fabric._server.connected_client"),
    ("fabric.centrifuge", "fabric.server"),
}
# The type of a field.
EXCEPT = {(f"fabric._config.{module}", "socket") for module in ("client", "server", "options")}

CYTHON_IMPORT = re.compile(
    r"^\s*(?:from\s+(?P<source>[\w.]+)\s+(?P<kind>c?import)|(?P<plain>c?import)\s+(?P<names>[\w., ]+))"
)


def place(module: str) -> str:
    """The name under which a module stands in LAYERS."""
    return next((p for p in PACKAGES if module.startswith(f"{p}.")), module)


def sources() -> dict[str, list[Path]]:
    """Every module of both packages, with the files that it is written in."""
    found: dict[str, list[Path]] = {}
    for path in sorted([*ROOT.glob("fabric/**/*.py"), *ROOT.glob("fabric_ext/*.p[yx]*")]):
        if path.suffix in {".py", ".pyx", ".pxd"}:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found.setdefault(name, []).append(path)
    return found


def python_imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (("import", alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import, of {node.module}"
            yield "import", node.module or ""
            yield from (("import", f"{node.module}.{alias.name}") for alias in node.names)


def cython_imports(text: str) -> Iterator[tuple[str, str]]:
    for line in re.sub(r'"""[\s\S]*?"""', "", text).splitlines():
        if match := CYTHON_IMPORT.match(line):
            if match["source"]:
                yield match["kind"], match["source"]
            else:
                yield from ((match["plain"], name.split()[0]) for name in match["names"].split(",") if name.strip())


def imports(path: Path) -> set[tuple[str, str]]:
    """All imports in a file: ("import" or "cimport", module)."""
    text = path.read_text()
    return set(python_imports(ast.parse(text)) if path.suffix == ".py" else cython_imports(text))


def runtime_imports(path: Path) -> set[str]:
    """The same without those for type checkers."""
    if path.suffix != ".py":
        return {name for _, name in imports(path)}
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return {name for _, name in python_imports(tree)}


SOURCES = sources()


def test_every_module_has_its_place() -> None:
    assert set(map(place, SOURCES)) - set(ORDER) == set(), "give each module a place in LAYERS"
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_downward(module: str) -> None:
    if place(module) not in LAYER:
        pytest.fail("give the module a place in LAYERS")
    allowed = ORDER[: ORDER.index(place(module)) + 1]
    for path in SOURCES[module]:
        ours = {place(name) for _, name in imports(path) if name in SOURCES and (module, name) not in UPWARD}
        assert ours <= set(allowed), f"{path.name} imports upward"


def test_endpoints_do_not_know_each_other() -> None:
    for module, other in [("fabric.client", "fabric.server"), ("fabric.server", "fabric.client")]:
        for path in SOURCES.get(module, []):
            assert other not in {name for _, name in imports(path)}


@pytest.mark.parametrize("module", [module for module in SOURCES if LAYER.get(module) in FORBIDDEN])
def test_what_a_layer_does_not_know_of(module: str) -> None:
    for path in SOURCES[module]:
        packages = {name.partition(".")[0] for name in runtime_imports(path)}
        known = packages & FORBIDDEN[LAYER[module]]
        assert {(module, package) for package in known} <= EXCEPT, path.name


def test_only_the_transport_knows_picows() -> None:
    found = {
        (module, kind)
        for module, paths in SOURCES.items()
        for path in paths
        for kind, name in imports(path)
        if name.partition(".")[0] == "picows"
    }
    assert found == {("fabric_ext.transport", "cimport"), ("fabric_ext", "import")}  # the latter checks its version


@pytest.mark.parametrize("module", [m for m in SOURCES if LAYER.get(m) in {"vocabulary", "policies"}])
def test_policies_do_not_sleep(module: str) -> None:
    for path in SOURCES[module]:
        called = {
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
        }
        assert "sleep" not in called


def test_the_reader_sees_imports() -> None:
    """The checks above hold nothing if their reader is blind."""
    assert set(cython_imports("from a.b cimport (x,\n  y)\ncimport c, d\n  import e\n'x' # import f")) == {
        ("cimport", "a.b"),
        ("cimport", "c"),
        ("cimport", "d"),
        ("import", "e"),
    }
    tree = ast.parse("from a import b\ndef f():\n    import c.d")
    assert set(python_imports(tree)) == {("import", "a"), ("import", "a.b"), ("import", "c.d")}
