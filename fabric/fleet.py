"""Names, requests and presence: reach a client by its name, on whichever server it is.

    async def handler(client):
        client.name = "agent-7"
        ...

    await server.send_to("agent-7", "hello")
    reply = await server.request("agent-7", "how full are you?", timeout=1)

Each server tells the others, over the broker, which of its clients have names and which topics with presence they are
in. So each knows where to find a name, and whether there is anybody. It says every two seconds that it is there; one
that has been silent for six seconds is forgotten, with all its entries. Nothing is sent before the first name is given
or asked for.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fabric._connection.base import data_message
from fabric._connection.events import log_event
from fabric._fleet.directory import Entry, Member
from fabric._fleet.membership import EVERYBODY, Membership, inbox
from fabric._fleet.wire import (
    Bye,
    Disconnect,
    Entered,
    Exited,
    Left,
    Malformed,
    Named,
    Reply,
    Request,
    Send,
    Spoken,
    Status,
    Unsubscribe,
    check_name,
    decode,
)
from fabric.broker import BrokerUnavailable
from fabric.error import BufferFull, ConnectionClosed, Error, InvalidState, Timeout
from fabric.message import Message, MessageType
from fabric_ext.protocol import check_close
from fabric_ext.topics import check_topic, exact

if TYPE_CHECKING:
    from fabric._config.server import ServerConfig
    from fabric._server.connected_client import ConnectedClient
    from fabric.message import Sendable
    from fabric.topics import Topics

__all__ = ["Fleet", "Member", "NameTaken", "NobodyThere", "RequestFailed"]

FULL = 10_000  # calls to other servers that wait for an answer
MOST_RUNNING = 1000  # requests of other servers that are being answered

logger = logging.getLogger("fabric.fleet")


class NobodyThere(Error, LookupError):
    """No client of any server has this name.

    Args:
        name: the one that was asked for.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"nobody has the name {name!r}")
        self.name = name


class NameTaken(Error, ValueError):
    """Another client has this name, and `ServerConfig.duplicate_names` is "reject".

    Args:
        name: the one that was to be given.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"the name {name!r} is taken")
        self.name = name


class RequestFailed(Error):
    """The client is there, but what was asked of it was not done, or not to the end."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class _Call:
    """A call to another server that waits for its reply."""

    __slots__ = ("node", "reply")

    def __init__(self, node: bytes, reply: asyncio.Future[Reply]) -> None:
        self.node = node
        self.reply = reply


class Fleet:
    """What a server knows of names, its own clients' and those of other servers. Used through the server.

    Args:
        topics: those of the server, whose broker it uses.
        config: of the server.
    """

    def __init__(self, topics: Topics, config: ServerConfig) -> None:
        self.on_request: Callable[[Any, Message], Any] | None = None
        self.on_join: Callable[[str, Member], Any] | None = None
        self.on_leave: Callable[[str, Member], Any] | None = None
        self.watch: Callable[[bool, str, Member], Any] | None = None  # likewise, of a protocol: has it joined?
        self.replaced = 1008, "another connection has this name"  # how one is closed whose name another has got
        self.malformed = 0  # messages of other servers that were none
        self._topics = topics
        self._duplicates = config.duplicate_names
        self._own = topics._node
        self._membership = Membership(topics, self._changed, self._resolve, self._fail_calls)
        self._directory = self._membership.directory
        topics._hear, topics._on_return = self.hear, self._membership.broker_is_back
        self._clients: dict[bytes, ConnectedClient] = {}  # those of this server that have names, by id
        self._local: dict[ConnectedClient, Entry] = {}
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._running: set[asyncio.Task[None]] = set()  # requests of other servers that are being answered
        self._telling: set[asyncio.Task[None]] = set()  # on_join and on_leave that are coroutine functions

    # -- life

    def start(self) -> None:
        """The server has connected to its broker."""
        self._membership.loop = asyncio.get_running_loop()
        if self.on_join is not None or self.on_leave is not None:
            self.begin()

    def begin(self) -> None:
        """Names matter from now on: tell the others that this server is there, and ask who they have.

        Raises InvalidState in another thread than the server's.
        """
        self._topics._check_here()
        self._membership.begin()

    async def close(self) -> None:
        """The server has shut down; its broker is still there."""
        loop = self._membership.loop
        self._membership.stop()
        if loop is None or loop.is_closed():
            return
        tasks = self._running | self._telling
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for call in self._calls.values():
            if not call.reply.done():
                call.reply.set_exception(RequestFailed("the server is shutting down"))
        self._membership.say_bye()

    def _fail_calls(self, node: bytes) -> None:
        """A server has gone: nothing answers what it was asked."""
        for call in self._calls.values():
            if call.node == node and not call.reply.done():
                call.reply.set_exception(RequestFailed("the server of the client has gone; it may have been done"))

    # -- names of this server's clients

    def name_of(self, client: ConnectedClient) -> str | None:
        """The name of a client of this server."""
        entry = self._local.get(client)
        return None if entry is None else entry.member.name

    def is_known(self, name: str) -> bool:
        """Does this server know of a client with this name?"""
        return bool(self._directory.holders(name))

    def is_taken(self, name: str) -> bool:
        """Would a client be refused this name?"""
        check_name(name)
        self.begin()
        return self._duplicates == "reject" and bool(self._directory.holders(name))

    def set_name(self, client: ConnectedClient, name: str | None) -> None:
        """Give a client of this server a name, another one, or none.

        Raises:
            NameTaken: another client has it, and duplicates are rejected.
            InvalidState: this is another thread than the server's.
            TypeError, ValueError: it is no name.
        """
        self._topics._check_here()
        if name is not None:
            check_name(name)
            name = exact(name)
        if name == self.name_of(client):
            return
        if name is None:
            self.leave(client)
            return
        self.begin()
        holders = self._directory.holders(name)
        if holders and self._duplicates == "reject":
            raise NameTaken(name)
        self.leave(client)
        now = time.time()
        if holders:  # it is the newest, whatever the clocks of the servers say
            now = max(now, holders[-1].since + 1e-6)
        key = client.id.bytes
        named = Named(key, name, now, sorted(topic for topic in client.topics if self._has_presence(topic)))
        entry = self._directory.put(self._own, named)
        assert entry is not None
        self._local[client] = entry
        self._clients[key] = client
        self._membership.announce(named)
        self._resolve(name)

    def leave(self, client: ConnectedClient) -> None:
        """A client has ended, or is to have no name any more."""
        if self._local.pop(client, None) is not None:
            key = client.id.bytes
            del self._clients[key]
            self._directory.drop(self._own, key)
            self._membership.announce(Left(key))

    def subscribed(self, client: ConnectedClient, topic: str) -> None:
        """A client has a subscription; if it has a name, and the topic presence, it is a member."""
        entry = self._local.get(client)
        if entry is not None and topic not in entry.topics and self._has_presence(topic):
            key = client.id.bytes
            self._directory.enter(self._own, key, topic)
            self._membership.announce(Entered(key, topic))

    def unsubscribed(self, client: ConnectedClient, topic: str) -> None:
        """A client has ended a subscription."""
        entry = self._local.get(client)
        if entry is not None and topic in entry.topics:
            key = client.id.bytes
            self._directory.exit(self._own, key, topic)
            self._membership.announce(Exited(key, topic))

    def _has_presence(self, topic: str) -> bool:
        return self._topics.settings(topic).presence and "*" not in topic and ">" not in topic

    def _resolve(self, name: str) -> None:
        """Where several have a name and only one may: close those of this server that may not."""
        holders = self._directory.holders(name)
        if self._duplicates == "both" or len(holders) < 2:
            return
        kept = holders[-1] if self._duplicates == "newest" else holders[0]
        for member in holders:
            client = self._clients.get(member.id.bytes)
            if member is not kept and client is not None:
                self.leave(client)
                client._close_when_sent(*self.replaced)

    def _changed(self, has_joined: bool, topic: str, member: Member) -> None:  # of Directory
        loop = self._membership.loop
        function = self.on_join if has_joined else self.on_leave
        if function is not None and loop is not None:
            loop.call_soon(self._call_back, function, topic, member)
        if self.watch is not None and loop is not None:
            loop.call_soon(self.watch, has_joined, topic, member)

    def _call_back(self, function: Callable[[str, Member], Any], topic: str, member: Member) -> None:
        """Call `on_join` or `on_leave`, a plain or a coroutine function."""
        try:
            result = function(topic, member)
        except Exception as error:  # noqa: BLE001  (logged)
            log_event(logger, logging.ERROR, "%s raised", function, exc_info=error)
            return
        if inspect.iscoroutine(result):  # what `publish` returns need not be awaited
            loop = self._membership.loop
            if loop is None:
                result.close()
                return
            task = loop.create_task(_survive(function, result))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    # -- by name

    async def send_to(self, name: str, message: Sendable, timeout: float) -> int:
        """See `WebSocketServer.send_to`."""
        data = data_message(message)
        holders = await self._find(name)
        if self._duplicates != "both":
            del holders[:-1]
        return await self._each(
            name,
            holders,
            timeout,
            lambda ids: self._send_here(name, ids, data),
            lambda number, ids: Send(number, ids, data.msg_type, data.as_bytes()),
        )

    async def request(self, name: str, message: Sendable, timeout: float) -> Message:
        """See `WebSocketServer.request`."""
        data = data_message(message)
        member = (await self._find(name))[-1]
        if member.id.bytes in self._clients:
            try:
                async with asyncio.timeout(timeout):
                    return await self._answer(self._clients[member.id.bytes], data)
            except TimeoutError:
                raise Timeout(f"the answer of {name!r}", timeout) from None
        reply = await self._call(
            name,
            bytes.fromhex(member.node),
            timeout,
            lambda number: Request(number, member.id.bytes, data.msg_type, data.as_bytes(), timeout),
        )
        try:
            return _message(reply.kind, reply.payload)
        except UnicodeDecodeError:
            raise RequestFailed("the answer is no UTF-8") from None

    async def presence(self, topic: str) -> list[Member]:
        """See `WebSocketServer.presence`."""
        check_topic(topic)
        topic = exact(topic)
        if not self._topics.settings(topic).presence:
            raise InvalidState(f"{topic!r} has no presence: say topics.configure({topic!r}, presence=True) before")
        self.begin()
        await self._membership.settle()
        return self._directory.members(topic)

    async def disconnect(self, name: str, code: int, reason: str, timeout: float) -> int:
        """See `WebSocketServer.disconnect`."""
        check_close(code, reason)
        return await self._everywhere(
            name,
            timeout,
            lambda ids: self._disconnect_here(ids, code, reason),
            lambda number, ids: Disconnect(number, ids, code, reason),
        )

    async def unsubscribe(self, name: str, topic: str, timeout: float) -> int:
        """See `WebSocketServer.unsubscribe`."""
        check_topic(topic, pattern=True)
        topic = exact(topic)
        return await self._everywhere(
            name,
            timeout,
            lambda ids: self._unsubscribe_here(ids, topic),
            lambda number, ids: Unsubscribe(number, ids, topic),
        )

    async def _everywhere(
        self,
        name: str,
        timeout: float,
        here: Callable[[Sequence[bytes]], int],
        there: Callable[[int, list[bytes]], Spoken],
    ) -> int:
        try:
            return await self._each(name, await self._find(name), timeout, here, there)
        except NobodyThere:
            return 0

    async def _find(self, name: str) -> list[Member]:
        """Those that have a name, at least one; wait only where this server has just come or come back."""
        check_name(name)
        self.begin()
        while not (holders := self._directory.holders(name)):
            if not await self._membership.news():
                raise NobodyThere(name)
        return holders

    async def _each(
        self,
        name: str,
        members: Iterable[Member],
        timeout: float,
        here: Callable[[Sequence[bytes]], int],
        there: Callable[[int, list[bytes]], Spoken],
    ) -> int:
        """Do something for members on their servers; return for how many it was done, raise if for none."""
        ids: dict[bytes, list[bytes]] = {}
        for member in members:
            ids.setdefault(bytes.fromhex(member.node), []).append(member.id.bytes)
        count = 0
        errors: list[Error] = []
        own = ids.pop(self._own, [])
        if own:
            try:
                count += here(own)
            except (NobodyThere, RequestFailed) as error:
                errors.append(error)
        calls = [self._call(name, node, timeout, _with(there, keys)) for node, keys in ids.items()]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, Reply):
                count += result.count
            elif isinstance(result, Error):
                errors.append(result)
            else:
                raise result
        if errors and not count:
            raise errors[0]
        return count

    async def _call(self, name: str, node: bytes, timeout: float, said: Callable[[int], Spoken]) -> Reply:
        """Have another server do something for one of its clients; wait for its reply."""
        if not self._topics.broker.is_healthy:
            raise BrokerUnavailable(f"the server of {name!r} cannot be reached, as the broker is away")
        if len(self._calls) >= FULL:
            raise BufferFull(len(self._calls), FULL, "requests to other servers")
        number = next(self._numbers)
        call = _Call(node, asyncio.get_running_loop().create_future())
        self._calls[number] = call
        try:
            self._membership.say(inbox(node), said(number), must=True)
            async with asyncio.timeout(timeout):
                reply = await call.reply
        except TimeoutError:
            raise Timeout(f"the answer of {name!r}", timeout) from None
        finally:
            del self._calls[number]
        if reply.status == Status.NOBODY:
            raise NobodyThere(name)
        if reply.status == Status.FAILED:
            raise RequestFailed(reply.payload.decode(errors="replace"))
        return reply

    # -- what is done for this server's clients

    def _send_here(self, name: str, ids: Iterable[bytes], message: Message) -> int:
        count = 0
        is_full = False
        for key in ids:
            client = self._clients.get(key)
            if client is None:
                continue
            try:
                client.send_nowait(message)
            except BufferFull:
                is_full = True
            except (ConnectionClosed, InvalidState):
                pass
            else:
                count += 1
        if not count:
            raise RequestFailed("too much waits for the client already") if is_full else NobodyThere(name)
        return count

    async def _answer(self, client: ConnectedClient, message: Message) -> Message:
        """What the application's `on_request` says."""
        if self.on_request is None:
            raise RequestFailed("the server of the client has no on_request")
        task = asyncio.current_task()
        try:
            answer = self.on_request(client, message)
            if inspect.isawaitable(answer):
                answer = await answer
            return data_message(answer)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # the request is cancelled, not something that on_request has waited for
            if not isinstance(error, ConnectionClosed):
                log_event(logger, logging.ERROR, "on_request raised for connection %s", client.id, exc_info=error)
            raise RequestFailed(f"on_request raised {type(error).__name__}") from error

    def _disconnect_here(self, ids: Iterable[bytes], code: int, reason: str) -> int:
        count = 0
        for key in ids:
            client = self._clients.get(key)
            if client is not None:
                self.leave(client)
                client._close_when_sent(code, reason)
                count += 1
        return count

    def _unsubscribe_here(self, ids: Iterable[bytes], topic: str) -> int:
        count = 0
        for key in ids:
            client = self._clients.get(key)
            if client is not None and topic in client.topics:
                client.unsubscribe(topic)
                count += 1
        return count

    # -- between servers

    def hear(self, topic: str, node: bytes, data: bytes) -> None:
        """Another server has said something to all, or to this one."""
        if not self._membership.is_running or topic not in (EVERYBODY, inbox(self._own)):
            return
        try:
            said = decode(data)
        except Malformed as error:
            self.malformed += 1
            log_event(logger, logging.DEBUG, "server %s said something malformed: %s", node.hex(), error)
            return
        if isinstance(said, Bye):
            self._membership.hear_bye(node)
        elif not self._membership.meet(node):
            return
        elif isinstance(said, Reply):
            call = self._calls.get(said.number)
            if call is not None and call.node == node and not call.reply.done():
                call.reply.set_result(said)
        elif isinstance(said, (Send, Request, Disconnect, Unsubscribe)):
            self._hear_call(node, said)
        else:
            self._membership.hear(node, said)

    def _hear_call(self, node: bytes, said: Send | Request | Disconnect | Unsubscribe) -> None:
        try:
            if isinstance(said, Request):
                message = _message(said.kind, said.payload)
                client = self._clients.get(said.id)
                if client is None:
                    self._reply(node, said.number, Status.NOBODY)
                elif len(self._running) >= MOST_RUNNING:
                    self._reply(node, said.number, Status.FAILED, payload=b"the server of the client is busy")
                else:
                    assert self._membership.loop is not None
                    task = self._membership.loop.create_task(self._answer_to(node, said, client, message))
                    self._running.add(task)
                    task.add_done_callback(self._running.discard)
                return
            if isinstance(said, Send):
                count = self._send_here("", said.ids, _message(said.kind, said.payload))
            elif isinstance(said, Disconnect):
                check_close(said.code, said.reason)
                count = self._disconnect_here(said.ids, said.code, said.reason)
            else:
                count = self._unsubscribe_here(said.ids, said.topic)
        except NobodyThere:
            self._reply(node, said.number, Status.NOBODY)
        except RequestFailed as error:
            self._reply(node, said.number, Status.FAILED, payload=str(error).encode())
        except ValueError:  # no UTF-8, or no code of a close
            self.malformed += 1
        else:
            self._reply(node, said.number, Status.DONE, count)

    async def _answer_to(self, node: bytes, said: Request, client: ConnectedClient, message: Message) -> None:
        try:
            async with asyncio.timeout(said.seconds):
                answer = await self._answer(client, message)
            self._reply(node, said.number, Status.DONE, 1, answer.msg_type, answer.as_bytes())
        except TimeoutError:
            pass  # the other server has given up as well
        except (RequestFailed, BrokerUnavailable) as error:  # the answer is too large for the broker, say
            self._reply(node, said.number, Status.FAILED, payload=str(error).encode())
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            log_event(logger, logging.ERROR, "on_request raised for connection %s", client.id, exc_info=error)
            self._reply(node, said.number, Status.FAILED, payload=f"on_request raised {type(error).__name__}".encode())
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise  # the other server is told before

    def _reply(
        self, node: bytes, number: int, status: int, count: int = 0, kind: int = 2, payload: bytes = b""
    ) -> None:
        self._membership.say(inbox(node), Reply(number, status, count, kind, payload), must=status == Status.DONE)


def _with(said: Callable[[int, list[bytes]], Spoken], ids: list[bytes]) -> Callable[[int], Spoken]:
    return lambda number: said(number, ids)


def _message(kind: int, payload: bytes) -> Message:
    return Message.text(payload.decode()) if kind == MessageType.TEXT else Message.binary(payload)


async def _survive(function: Callable[[str, Member], Any], result: Coroutine[Any, Any, Any]) -> None:
    try:
        await result
    except Exception as error:  # noqa: BLE001  (logged)
        log_event(logger, logging.ERROR, "%s raised", function, exc_info=error)
