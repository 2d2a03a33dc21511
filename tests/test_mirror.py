"""The tests mirror the sources: each module's tests are in a file of its name, or in the one that is named here."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent

#: Module -> where it is tested, when no file of `tests` has its name.
ELSEWHERE = {
    "fabric._asgi.worker": "integration/test_asgi_run.py",
    "fabric._client.report": "integration/test_client_life.py",
    "fabric._config.defaults": "unit/test_config.py",
    "fabric._connection.callbacks": "unit/test_misuse.py",
    "fabric._connection.nodelay": "integration/test_sockets.py",
    "fabric._connection.open_context": "unit/test_misuse.py",
    "fabric._connection.tracing": "integration/test_otel.py",
    "fabric._fleet.membership": "unit/test_fleet.py",
    "fabric._handshake.client": "integration/test_client_connect.py",
    "fabric._handshake.response_reader": "integration/test_client_connect.py",
    "fabric._history.log": "unit/test_history.py",
    "fabric._history.logs": "unit/test_history.py",
    "fabric._pool.host": "unit/test_pool.py",
    "fabric._server.connected_client": "integration/test_server.py",
    "fabric._server.connections": "integration/test_server.py",
    "fabric._topics.settings": "unit/test_topics.py",
    "fabric._version": "test_packaging.py",
    "fabric.broker.address": "integration/test_broker_refusals.py",
    "fabric.broker.echo": "integration/test_broker_refusals.py",
    "fabric.broker.embedded": "integration/test_brokers.py",
    "fabric.broker.jetstream": "integration/test_histories_nats.py",
    "fabric.broker.nats": "integration/test_brokers.py",
    "fabric.broker.redis": "integration/test_brokers.py",
    "fabric.broker.streams": "integration/test_histories_redis.py",
    "fabric.client": "integration/test_client_connect.py",
    "fabric_ext.fanout": "unit/test_broadcast.py",
    "fabric_ext.plain_blocking": "integration/test_websockets_sync_client.py",
    "fabric_ext.session_user": "unit/test_session.py",
}
#: Folder of modules -> where those are tested that have no file of their own.
TOGETHER = {
    "fabric._sync.": "integration/test_sync.py",
    "fabric._workers.": "integration/test_workers.py",
    "fabric.cli.": "unit/test_cli.py",
    "fabric.testing.": "integration/test_testing.py",
    "fabric.websockets.asyncio.": "integration/test_websockets_client.py",
    "fabric.websockets.legacy.": "unit/test_websockets.py",
    "fabric.websockets.sync.": "integration/test_websockets_sync_client.py",
    "fabric.websockets.": "unit/test_websockets.py",
    "fabric.__main__": "unit/test_cli.py",
}

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in [*ROOT.glob("fabric/**/*.py"), *ROOT.glob("fabric_ext/*.pyx")]
    if path.name != "__init__.py"
)
FILES = {path.stem.removeprefix("test_") for path in TESTS.glob("*/test_*.py")}


def own_names(module: str) -> set[str]:
    """Names that a file of tests for a module may have: `fabric._http.url` is tested in test_url or test_http_url."""
    parts = [part.strip("_") for part in module.split(".")[1:]]
    return {"_".join(parts[start:]) for start in range(len(parts))}


@pytest.mark.parametrize("module", MODULES)
def test_each_module_has_a_file_of_tests(module: str) -> None:
    if own_names(module) & FILES:
        assert module not in ELSEWHERE, f"{module} has a file of its own: remove its line"
        return
    place = ELSEWHERE.get(module) or next((file for start, file in TOGETHER.items() if module.startswith(start)), None)
    assert place, f"give {module} a file of tests, or say in ELSEWHERE where its tests are"
    assert (TESTS / place).is_file()


def test_nothing_is_named_that_is_not_there() -> None:
    assert set(ELSEWHERE) <= set(MODULES)
    assert all(any(module.startswith(start) for module in MODULES) for start in TOGETHER)
