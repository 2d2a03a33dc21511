"""The connections of a server, and the tasks that run for them.

Owns which connections are open, how many come from one address, and the tasks of handlers and callbacks; a server that
shuts down waits here until none is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import Any

from fabric._connection.base import is_end
from fabric._connection.events import log_event
from fabric._http.messages import Address
from fabric._server.connected_client import ConnectedClient

__all__ = ["Connections"]

logger = logging.getLogger("fabric.server")


class Connections:
    """The open connections of one server, and what runs for them.

    Attributes:
        clients: the application's, in order of arrival, as their memory and sockets are.
        viewers: those of the dashboard's pages, which are none of the application's.
        by_id: the application's whose `id` has been asked for.
        per_ip: how many come from each address.
        tasks: of handlers and callbacks.
    """

    def __init__(self) -> None:
        self.clients: dict[ConnectedClient, None] = {}
        self.viewers: dict[ConnectedClient, None] = {}
        self.by_id: dict[uuid.UUID, ConnectedClient] = {}
        self.per_ip: Counter[str] = Counter()
        self.tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()  # a connection or a task has ended
        self._local_addr: Address | None = None

    def __len__(self) -> int:
        return len(self.clients) + len(self.viewers)

    def all(self) -> list[ConnectedClient]:
        """All that are open: the application's, and those of the dashboard."""
        return [*self.clients, *self.viewers]

    def add(self, client: ConnectedClient) -> None:
        """A connection has been opened."""
        (self.viewers if client._is_viewer else self.clients)[client] = None
        if client._ip is not None:
            self.per_ip[client._ip] += 1

    def remove(self, client: ConnectedClient) -> None:
        """A connection has ended."""
        (self.viewers if client._is_viewer else self.clients).pop(client, None)
        self._changed.set()
        if client._id is not None:
            self.by_id.pop(client._id, None)
        if client._ip is not None:
            self.per_ip[client._ip] -= 1
            if not self.per_ip[client._ip]:
                del self.per_ip[client._ip]

    def local_addr(self, found: Address | None) -> Address | None:
        """`found`, as one object for all connections in a row that came in at the same address."""
        if found != self._local_addr:
            self._local_addr = found
        return self._local_addr

    # -- tasks

    def handle(
        self, handler: Callable[[ConnectedClient], Any], client: ConnectedClient, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[Any]:
        """Start the task of a connection."""
        running = handler(client)
        task: asyncio.Task[Any]
        if isinstance(running, CoroutineType):
            task = loop.create_task(running)
        elif inspect.isawaitable(running):
            task = asyncio.ensure_future(running, loop=loop)
        else:
            raise TypeError(f"the handler returned {running!r}, which cannot be awaited: write it as `async def`")
        client._task = task
        self.tasks.add(task)
        task.add_done_callback(client._handler_done)
        return task

    def call(self, function: Callable[[ConnectedClient], Any], client: ConnectedClient) -> None:
        """Call a plain or a coroutine function of the application; what it raises is logged.

        Not where it says only that the connection has ended meanwhile.
        """
        was_open = client._is_open
        try:
            result = function(client)
        except Exception as error:  # noqa: BLE001  (logged)
            self._report(error, client, was_open)
            return
        if inspect.isawaitable(result):
            self.spawn(result, client, was_open=was_open)

    def spawn(self, awaitable: Awaitable[Any], client: ConnectedClient, *, was_open: bool = True) -> None:
        """Run something for `client` whose end only the server's shutdown waits for."""
        task: asyncio.Task[Any] = asyncio.ensure_future(awaitable)
        self.tasks.add(task)
        task.add_done_callback(functools.partial(self._spawned_done, client, was_open))

    def task_done(self, task: asyncio.Task[Any]) -> None:
        """A task has ended."""
        self.tasks.discard(task)
        self._changed.set()

    def _spawned_done(self, client: ConnectedClient, was_open: bool, task: asyncio.Task[Any]) -> None:
        self.task_done(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._report(error, client, was_open)

    def _report(self, error: BaseException, client: ConnectedClient, was_open: bool) -> None:
        # What was called after the end knows of it: there ConnectionClosed is another connection's.
        if client._is_open or not was_open or not is_end(error):
            log_event(logger, logging.ERROR, "a callback of connection %s raised", client.id, exc_info=error)

    # -- until none is left

    def other_tasks(self) -> set[asyncio.Task[Any]]:
        """All but the one that asks: a handler may shut its server down."""
        return {task for task in self.tasks if task is not asyncio.current_task()}

    async def all_gone(self, timeout: float) -> None:
        """Wait until no connection and no other task is left, for `timeout` seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.clients or self.viewers or self.other_tasks():
                    self._changed.clear()
                    await self._changed.wait()
