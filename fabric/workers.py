"""Several processes that serve one address: `fabric.workers.run(main, 4)`.

    from fabric import ServerConfig, WebSocketServer, workers

    def main(worker):
        return WebSocketServer(ServerConfig(sock=worker.sockets), handler, broker=worker.broker)

    if __name__ == "__main__":
        workers.run(main, 4, bind="0.0.0.0:8080", broker="nats:embedded")

The process that calls `run` becomes the parent. It starts the workers in new interpreters, starts those again that end,
and serves nothing itself. It keeps the listening sockets, so that no connection is refused while a worker is replaced.
"""

from __future__ import annotations

import asyncio
import math
import pickle
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import spawn
from typing import Any, Literal

from fabric._workers.child import Worker, is_worker
from fabric._workers.supervisor import Settings, Supervisor, WorkersFailed
from fabric.broker import make_broker
from fabric.config import ReconnectConfig, ServerConfig
from fabric.error import InvalidState

__all__ = ["Worker", "WorkersFailed", "run"]

INTERRUPTED = 128 + signal.SIGINT
RESTART = ReconnectConfig(initial_delay=0.1, max_delay=30, backoff_multiplier=2, jitter=0.2, stable_after=10)
PROGRAM = ("sys_path", "sys_argv", "dir", "orig_dir")
OF_MAIN = ("init_main_from_name", "init_main_from_path")


def run(
    main: Callable[[Worker], Any],
    n: int,
    *,
    bind: str = "127.0.0.1:8080",
    balance: Literal["hash", "least"] = "hash",
    broker: str = "memory:",
    metrics: str | None = None,
    drain: float | timedelta = 0.0,
    start_timeout: float | timedelta = 60.0,
    shutdown_timeout: float | timedelta = 10.0,
    restart: ReconnectConfig = RESTART,
    max_failures: int = 5,
) -> None:
    """Serve one address by `n` processes, until SIGINT (Ctrl-C) or SIGTERM; then return.

    Those signals close each connection with 1001, as `WebSocketServer.shutdown` does; a second one at once. At SIGHUP
    all workers are replaced, one after the other: a new process is started, and when it is ready, the old one takes no
    more connections and closes its own with 1012. A new process that fails to start leaves the old one as it is. A
    signal that the process ignores stays ignored.

    Args:
        main: `def main(worker)`, which returns a `WebSocketServer`; or a coroutine function; or an asynchronous
            context manager (`contextlib.asynccontextmanager`) that yields it. Each worker imports it: it stands at the
            top level of a module, or of the program, whose call of `run` is behind `if __name__ == "__main__":`.
        n: how many workers.
        bind: where to listen, as `ServerConfig.bind`.
        balance: "hash": on Linux, the kernel spreads connections by a hash of their addresses; elsewhere the fastest
            worker takes them. "least": the parent accepts each, and passes it to the worker with the fewest.
        broker: for `worker.broker`. "nats:embedded" is started once, by the parent.
        metrics: "host:port" of a page about all workers: /dashboard, /metrics for Prometheus, /metrics.json, /health.
        drain: seconds for which the connections of a worker that is replaced may go on, before they are closed.
        start_timeout: seconds until a worker has to be ready. One that is not is killed, and has failed to start.
        shutdown_timeout: seconds until connections that are still closing are aborted.
        restart: delays until a worker that has ended is started again. They start over when one has lived for
            `stable_after`. `enabled`, `max_attempts` and `decide` are not used.
        max_failures: after so many starts in a row at which a worker did not become ready, the parent ends the others.

    Raises:
        WorkersFailed: a worker could not be started.
        Io: the address is in use, or not ours.
        BrokerUnavailable: the broker of the parent does not start.
        InvalidState: this is a worker, which imports the program; or not the main thread.
        RuntimeError: an event loop is running in this thread already.
        TypeError, ValueError: an argument is wrong; a worker could not import `main`.
    """
    settings = make_settings(
        main,
        n,
        bind=bind,
        balance=balance,
        broker=broker,
        metrics=metrics,
        drain=drain,
        start_timeout=start_timeout,
        shutdown_timeout=shutdown_timeout,
        restart=restart,
        max_failures=max_failures,
    )
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("workers.run() cannot be called where an event loop is running")
    if threading.current_thread() is not threading.main_thread():
        raise InvalidState("workers.run() handles signals: call it in the main thread", state="other thread")
    try:
        supervise(settings)
    except KeyboardInterrupt:  # before the loop has begun, or after it has ended
        raise SystemExit(INTERRUPTED) from None


def supervise(settings: Settings, on_ready: Callable[[Supervisor], None] | None = None) -> signal.Signals:
    """Be the parent; return the signal that ended it. Raises as `run`."""

    async def keep() -> signal.Signals:
        return await Supervisor(settings, on_ready).run()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:  # uvloop keeps SIGCHLD for itself
        return runner.run(keep())


def make_settings(
    main: Callable[[Worker], Any],
    n: int,
    *,
    bind: str,
    balance: str,
    broker: str,
    metrics: str | None,
    drain: float | timedelta = 0.0,
    start_timeout: float | timedelta = 60.0,
    shutdown_timeout: float | timedelta = 10.0,
    restart: ReconnectConfig = RESTART,
    max_failures: int = 5,
    loop: str = "auto",
) -> Settings:
    """Check what `run` was given. `loop` is "asyncio" for asyncio's own, or "auto". Raises as `run`."""
    if is_worker():
        raise InvalidState(
            'a worker imports the program, and must not start workers: call run() below `if __name__ == "__main__":`',
            state="worker",
        )
    for name, value in (("n", n), ("max_failures", max_failures)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} is a number, not {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name} = {value}: expected 1 or more")
    if balance not in ("hash", "least"):
        raise ValueError(f'balance = {balance!r}: expected "hash" or "least"')
    if not isinstance(broker, str):
        raise TypeError(f"broker is a URL, not {type(broker).__name__}: each worker makes its own connection")
    make_broker(broker)
    for address in (bind,) if metrics is None else (bind, metrics):
        ServerConfig(address)
    if not callable(main):
        raise TypeError(f"main is a function, not {type(main).__name__}")
    pickled, program = importable(main)
    return Settings(
        main=pickled,
        program=program,
        count=n,
        bind=bind,
        balance=balance,
        broker=broker,
        metrics=metrics,
        drain=_seconds("drain", drain),
        start_timeout=_seconds("start_timeout", start_timeout),
        shutdown_timeout=_seconds("shutdown_timeout", shutdown_timeout),
        restart=restart.with_max_attempts(0).with_enabled(True),
        max_failures=max_failures,
        loop=loop,
    )


def importable(main: Callable[..., Any]) -> tuple[bytes, dict[str, Any]]:
    """How a worker finds `main`: pickled, and what `multiprocessing.spawn.prepare` needs before.

    Raises:
        ValueError: it cannot.
    """
    hint = "a worker imports it, so it has to be a function at the top level of a module"
    try:
        pickled = pickle.dumps(main)
    except Exception as error:
        raise ValueError(f"main = {main!r}: {hint} ({error})") from error
    data = spawn.get_preparation_data("worker")
    program = {name: data[name] for name in PROGRAM if name in data}
    if b"__main__" in pickled:
        found = {name: data[name] for name in OF_MAIN if name in data}
        if not found:
            raise ValueError(f"main = {main!r}: {hint}, and this program has no file")
        program |= found
    return pickled, program


def _seconds(name: str, value: float | timedelta) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}")
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} = {value!r}: expected 0 or more seconds")
    return float(seconds)
