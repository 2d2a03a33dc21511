"""The Centrifugal client protocol, in JSON: the SDKs for JavaScript and Python connect to a server of ours.

    def authorize(client, action, topic):
        if action == "connect":
            client.name = user_of(action.token)      # raises, or is None, where nobody is to be let in
            return client.name is not None
        return topic.startswith("room.")

    server = WebSocketServer.bind("127.0.0.1:8000", protocol="centrifuge", authorize=authorize)

Channels are topics of the server: what is published to one, on any server, is pushed to those who have subscribed. A
push is encoded once for all of them.

Source: `definitions/client.proto` of https://github.com/centrifugal/protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import msgspec

from fabric._centrifuge import wire
from fabric._centrifuge.wire import Malformed, Refused
from fabric._connection.callbacks import check_callback
from fabric._connection.events import log_event
from fabric._version import VERSION
from fabric.broker import BrokerUnavailable
from fabric.error import BufferFull, ConnectionClosed, Error, InvalidState
from fabric.fleet import Member, NameTaken
from fabric.history import History, Position
from fabric.message import Message
from fabric.topics import Outcome
from fabric_ext.broadcast import Shared
from fabric_ext.topics import check_topic

if TYPE_CHECKING:
    from fabric._server.connected_client import ConnectedClient
    from fabric.server import WebSocketServer

__all__ = ["Action", "Centrifuge", "Refused"]

PATIENCE = 15.0  # seconds in which a client has to say who it is
MOST_RUNNING = 100  # methods of one client, and publications that the broker has not confirmed
MOST_MEMBERS = 10_000  # in one answer

logger = logging.getLogger("fabric.centrifuge")

Authorize = Callable[["ConnectedClient", "Action", str], Any]
Methods = Mapping[str, Callable[["ConnectedClient", Any], Any]]


class Action(str):
    """What a client wants to do, and what it said with it: `action == "subscribe"`.

    It is one of "connect", "subscribe", "publish", "presence", "history" and "rpc".

    Attributes:
        token: what the client proves itself with, of "connect" and "subscribe"; otherwise "".
    """

    __slots__ = ("_data", "token")

    _data: msgspec.Raw
    token: str

    def __new__(cls, name: str, data: msgspec.Raw = wire.NOTHING, token: str | None = None) -> Self:
        """See the class."""
        action = super().__new__(cls, name)
        action._data = data
        action.token = token or ""
        return action

    @property
    def data(self) -> Any:
        """What the application of the client has sent with it, any JSON value; None without."""
        return wire.decoded(self._data)


class Centrifuge:
    """A server's side of the protocol: `WebSocketServer(..., protocol="centrifuge")` makes one.

    Args:
        server: whose clients speak it.
        authorize: called with a client, an `Action` and a topic: may the client do this? The topic is "" for "connect",
            and the name of the method for "rpc". A plain or a coroutine function. It may raise `Refused`. Who may
            "subscribe" may recover as well: an offset of 0 gets all that is kept of the topic. As in Centrifugo,
            "history" is asked only for the command of that name.
        methods: what clients call by "rpc": names, and functions that are called with the client and any JSON value,
            and return one. Plain or coroutine functions. They may raise `Refused`.
    """

    def __init__(self, server: WebSocketServer, authorize: Authorize | None, methods: Methods | None) -> None:
        if authorize is None:
            raise ValueError("protocol='centrifuge' needs authorize=..., which says who may do what")
        check_callback("authorize", authorize, ("client", "action", "topic"))
        self.authorize = authorize
        self.methods = dict(methods or {})
        for name, method in self.methods.items():
            check_callback(f"the method {name!r}", method, ("client", "data"))
        self.server = server
        self.watchers: dict[str, dict[ConnectedClient, None]] = {}  # of a channel: those who hear of joining

    async def serve(self, client: ConnectedClient) -> None:
        """The handler of each connection."""
        await Translator(self, client).run()

    def wrap(self, topic: str, message: Message, position: Position | None) -> Message:
        """What clients get of a message."""
        offset = None if position is None else position.offset
        return Message.text(wire.push(topic, "pub", _publication(message, offset)))

    def tell_presence(self, has_joined: bool, topic: str, member: Member) -> None:
        """Somebody has joined a topic, or left it: push that to those who have asked for it."""
        watchers = self.watchers.get(topic)
        if not watchers:
            return
        kind = "join" if has_joined else "leave"
        message = Message.text(wire.push(topic, kind, wire.encode({"info": _info(member)})))
        _, later = Shared(message, None, self.server.config.fragment_size or 0).send_to(list(watchers))
        for client in later:
            with contextlib.suppress(BufferFull, ConnectionClosed, InvalidState):  # it can ask for the presence
                client.send_nowait(message)


class Translator:
    """One client: takes its commands, one after the other, does what they ask through the server, and answers.

    Methods that take time run beside each other.
    """

    def __init__(self, protocol: Centrifuge, client: ConnectedClient) -> None:
        self._protocol = protocol
        self._server = protocol.server
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._channels: dict[str, None] = dict.fromkeys(client.topics)
        self._running: set[asyncio.Task[None]] = set()
        self._is_connected = False
        self._is_unusable = False
        self._is_busy = False
        self._is_silent = False  # since the last ping
        self._owes_pong = False
        self._timer = self._loop.call_later(PATIENCE, self._close, *wire.STALE)

    async def run(self) -> None:
        """Serve the client until its connection ends."""
        self._client._translator = self
        try:
            async for message in self._client:
                self._is_silent = False
                if not message.is_text:
                    raise Refused(*wire.NO_JSON)
                self._is_busy = True
                for command in wire.commands(message.as_text()):
                    await self._obey(command)
                    if not self._client._is_open:
                        return
                self._is_busy = False
        except Malformed as error:
            log_event(logger, logging.DEBUG, "connection %s: no command: %s", self._client.id, error)
            self._close(*wire.MALFORMED)
        except Refused as refused:
            self._close(refused.code, refused.message)
        finally:
            self._client._translator = None
            self._timer.cancel()
            for channel in self._channels:
                self._unwatch(channel)
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(self._running)

    def _close(self, code: int, reason: str) -> None:
        if self._client._is_open:
            self._client._close_when_sent(code, reason)

    # -- commands

    async def _obey(self, command: wire.Command) -> None:
        """Do what a command asks for, and answer it, or see to it that it will be answered.

        Raises:
            Refused: this is no command of the protocol, or not at this time.
        """
        name, request = command.request()
        if self._is_unusable or self._is_connected == (name == "connect"):
            raise Refused(*wire.MALFORMED)
        if not name and not command.id and self._owes_pong:
            self._owes_pong = False
        elif name == "send":
            raise Refused(*wire.NO_MESSAGES)
        elif not name or not command.id:
            raise Refused(*wire.MALFORMED)
        else:
            await self._answer(command.id, name, self._do(command.id, name, request))
            self._is_unusable = name == "connect" and not self._is_connected

    async def _do(self, number: int, name: str, request: Any) -> str | None:
        """The result of a command, or None where the answer comes later."""
        function = COMMANDS.get(name)
        if function is None:
            raise Refused(*wire.NOT_AVAILABLE)
        return await function(self, number, request)

    async def _answer(self, number: int, name: str, doing: Awaitable[str | None]) -> None:
        """Answer a command with its result, or with what it has raised."""
        try:
            result = await doing
            text = None if result is None else wire.reply(number, name, result)
        except Refused as refused:
            if refused.code >= wire.FIRST_OF_CLOSES:
                self._close(refused.code, refused.message)
                return
            text = wire.error(number, refused)
        except BrokerUnavailable:
            text = wire.error(number, Refused(*wire.INTERNAL, temporary=True))
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # the command is cancelled, not something that the application has waited for
            if not self._client._is_open:
                return
            log_event(logger, logging.ERROR, "%s of connection %s raised", name, self._client.id, exc_info=error)
            text = wire.error(number, Refused(*wire.INTERNAL, temporary=True))
        if text is not None:
            try:
                await self._client.send(text)
            except ConnectionClosed:
                pass
            except Error:  # it takes nothing
                self._close(*wire.SLOW)

    async def _room(self) -> None:
        """Wait until less is running than may."""
        while len(self._running) >= MOST_RUNNING:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    def _answer_later(self, number: int, name: str, doing: Awaitable[str | None], *parts: Awaitable[Any]) -> None:
        """Answer a command beside others; `parts` are what `doing` awaits."""
        task = self._loop.create_task(self._answer(number, name, doing))
        self._running.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            for each in (doing, *parts):  # it may have been cancelled before it began
                if inspect.iscoroutine(each):
                    each.close()

        task.add_done_callback(done)

    async def _may(self, action: Action, topic: str) -> bool:
        """Ask the application."""
        answer = self._protocol.authorize(self._client, action, topic)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    async def _allow(self, action: Action, topic: str) -> None:
        if not await self._may(action, topic):
            raise Refused(*wire.DENIED)

    def _channel(self, request: Any) -> str:
        """What a command is about: the name of a topic, and none that is reserved or a pattern."""
        channel: str = request.channel
        if not channel:
            raise Refused(*wire.MALFORMED)
        if channel.startswith("$") or "*" in channel or ">" in channel:
            raise Refused(*wire.DENIED)
        try:
            check_topic(channel)
        except ValueError:
            raise Refused(*wire.BAD_REQUEST) from None
        return channel

    async def _connect(self, number: int, request: wire.Connect) -> str:
        try:
            if not await self._may(Action("connect", request.data, request.token), ""):
                raise Refused(*wire.STRANGER)
        except NameTaken:
            raise Refused(*wire.NAME_TAKEN) from None
        result: dict[str, Any] = {"client": str(self._client.id), "version": f"fabric {VERSION}"}
        if self._channels:
            result["subs"] = {channel: {} for channel in self._channels}
        self._timer.cancel()
        self._is_connected = True
        interval = self._server.config.ping_interval
        if interval is not None:
            result |= {"ping": math.ceil(interval), "pong": True}
            # Clients that have come together are not pinged together.
            self._timer = self._loop.call_later(
                interval * (0.5 + self._client.id.int % 1000 / 2000), self._ping, interval
            )
        return wire.encode(result)

    async def _subscribe(self, number: int, request: wire.Subscribe) -> str | None:
        channel = self._channel(request)
        if request.type:
            raise Refused(*wire.NOT_AVAILABLE)
        if channel in self._channels:
            raise Refused(*wire.ALREADY_SUBSCRIBED)
        if len(self._channels) >= self._server.config.max_topics:
            raise Refused(*wire.LIMIT_EXCEEDED)
        await self._allow(Action("subscribe", request.data, request.token), channel)
        is_watching = request.join_leave and await self._may(Action("presence"), channel)
        self._channels[channel] = None
        if is_watching:
            self._protocol.watchers.setdefault(channel, {})[self._client] = None
        try:
            return await self._join(number, request)
        except InvalidState:
            if channel in self._channels:
                self._leave(channel)
                raise
            raise Refused(*wire.DENIED) from None  # unsubscribed meanwhile
        except BaseException:
            self._leave(channel)
            raise

    async def _join(self, number: int, request: wire.Subscribe) -> str | None:
        """Subscribe; with a history, the answer says what was missed, and goes before anything newer."""
        channel = request.channel
        if not self._has_history(channel):
            await self._client.subscribe(channel)
            if channel not in self._channels:  # unsubscribed meanwhile
                raise Refused(*wire.DENIED)
            return '{"was_recovering":true}' if request.recover else "{}"
        since = _position(request.epoch, request.offset) if request.recover else None

        def answer(history: History) -> None:
            if since is not None and not history.recovered and request.flag & wire.REJECT_UNRECOVERED:
                self._forget(channel)  # the error says that it has no subscription
                raise Refused(*wire.UNRECOVERABLE)
            result = {"recoverable": True, "positioned": True, "epoch": history.position.epoch}
            result["offset"] = history.position.offset
            if since is not None:
                result["was_recovering"] = True
                if history.recovered:
                    # The client counts on from what it had.
                    result |= {"recovered": True, "offset": since.offset, "publications": _publications(history)}
            self._tell(wire.reply(number, "subscribe", wire.encode(result)))

        await self._client.subscribe(channel, since=since, on_recovery=answer)
        return None

    def _has_history(self, channel: str) -> bool:
        return self._server.topics.settings(channel).history > 0

    async def _unsubscribe(self, number: int, request: wire.Channel) -> str:
        self._leave(self._channel(request))
        return "{}"

    def _leave(self, channel: str) -> None:
        """The client itself ends a subscription."""
        self._forget(channel)
        self._client.unsubscribe(channel)

    def _forget(self, channel: str) -> None:
        self._channels.pop(channel, None)
        self._unwatch(channel)

    def _unwatch(self, channel: str) -> None:
        watchers = self._protocol.watchers.get(channel)
        if watchers is not None:
            watchers.pop(self._client, None)
            if not watchers:
                del self._protocol.watchers[channel]

    async def _publish(self, number: int, request: wire.Publish) -> str | None:
        channel = self._channel(request)
        if request.type:
            raise Refused(*wire.NOT_AVAILABLE)
        data = bytes(request.data).decode()
        if not data:
            raise Refused(*wire.BAD_REQUEST)
        await self._allow(Action("publish", request.data), channel)
        await self._room()
        self._answer_later(number, "publish", _done(self._server.publish(channel, Message.text(data))))
        return None

    async def _members(self, request: wire.Channel) -> list[Member]:
        channel = self._channel(request)
        await self._allow(Action("presence"), channel)
        if not self._server.topics.settings(channel).presence:
            raise Refused(*wire.NOT_AVAILABLE)
        return await self._server.presence(channel)

    async def _presence(self, number: int, request: wire.Channel) -> str:
        members = await self._members(request)
        if len(members) > MOST_MEMBERS:
            raise Refused(*wire.LIMIT_EXCEEDED)
        return wire.encode({"presence": {str(member.id): _info(member) for member in members}})

    async def _presence_stats(self, number: int, request: wire.Channel) -> str:
        members = await self._members(request)
        return wire.encode({"num_clients": len(members), "num_users": len({member.name for member in members})})

    async def _history(self, number: int, request: wire.History) -> str:
        channel = self._channel(request)
        await self._allow(Action("history"), channel)
        if not self._has_history(channel):
            raise Refused(*wire.NOT_AVAILABLE)
        since = None
        if request.since is not None:
            epoch = request.since.epoch or (await self._server.history(channel, limit=0)).position.epoch
            since = _position(epoch, request.since.offset)
        limit = None if request.limit < 0 else request.limit
        history = await self._server.history(channel, since=since, limit=limit, reverse=request.reverse)
        if since is not None and not (since.epoch == history.position.epoch if request.reverse else history.recovered):
            raise Refused(*wire.UNRECOVERABLE)
        epoch, offset = history.position
        return wire.encode({"publications": _publications(history), "epoch": epoch, "offset": offset})

    async def _rpc(self, number: int, request: wire.Call) -> str | None:
        await self._allow(Action("rpc", request.data), request.method)
        method = self._protocol.methods.get(request.method)
        if method is None:
            raise Refused(*wire.METHOD_NOT_FOUND)
        await self._room()
        answer = method(self._client, wire.decoded(request.data))
        if not inspect.isawaitable(answer):
            return wire.encode({"data": answer})
        self._answer_later(number, "rpc", _returned(answer), answer)
        return None

    # -- what the server tells without being asked

    def subscribed(self, topic: str) -> None:
        """Its connection has been subscribed to a topic; tell the client if it does not know."""
        if topic not in self._channels:
            self._channels[topic] = None
            if self._is_connected:
                self._tell(wire.push(topic, "subscribe", "{}"))

    def unsubscribed(self, topic: str) -> None:
        """Its connection has left a topic; tell the client if it does not know."""
        if topic in self._channels:
            del self._channels[topic]
            self._unwatch(topic)
            if self._is_connected:
                code, reason = wire.UNSUBSCRIBED
                self._tell(wire.push(topic, "unsubscribe", wire.encode({"code": code, "reason": reason})))

    def _tell(self, text: str) -> None:
        try:
            self._client.send_nowait(text)
        except BufferFull:
            self._close(*wire.SLOW)
        except (ConnectionClosed, InvalidState):
            pass

    def _ping(self, interval: float) -> None:
        with contextlib.suppress(BufferFull, ConnectionClosed, InvalidState):  # one that takes nothing is not asked
            self._client.send_nowait(wire.PING)
            self._owes_pong = self._is_silent = True
        self._timer = self._loop.call_later(self._server.config.ping_timeout, self._check_pong, interval)

    def _check_pong(self, interval: float) -> None:
        if self._is_silent and not self._is_busy:
            self._close(*wire.NO_PONG)
        else:
            self._is_silent = False
            self._timer = self._loop.call_later(
                max(interval - self._server.config.ping_timeout, 0), self._ping, interval
            )


COMMANDS: dict[str, Callable[[Translator, int, Any], Awaitable[str | None]]] = {
    "connect": Translator._connect,
    "subscribe": Translator._subscribe,
    "unsubscribe": Translator._unsubscribe,
    "publish": Translator._publish,
    "presence": Translator._presence,
    "presence_stats": Translator._presence_stats,
    "history": Translator._history,
    "rpc": Translator._rpc,
}


async def _done(outcome: Outcome[int]) -> str:
    await outcome
    return "{}"


async def _returned(answer: Awaitable[Any]) -> str:
    return wire.encode({"data": await answer})


def _position(epoch: str, offset: int) -> Position:
    try:
        return Position.check((epoch, offset))
    except ValueError:
        raise Refused(*wire.BAD_REQUEST) from None


def _publication(message: Message, offset: int | None) -> str:
    data = wire.as_json(message.as_bytes())
    return f'{{"data":{data}}}' if offset is None else f'{{"data":{data},"offset":{offset}}}'


def _publications(history: History) -> list[msgspec.Raw]:
    return [msgspec.Raw(_publication(message, offset)) for offset, message in history.publications]


def _info(member: Member) -> dict[str, str]:
    return {"user": member.name, "client": str(member.id)}
