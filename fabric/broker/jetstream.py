"""Histories over NATS: one stream of JetStream keeps the messages of all topics.

Offsets are the stream's sequence numbers, and the epoch is in its name: a server that finds no stream makes one with a
new name. No two streams may have the same subjects, but nats-server lets two be made in the same moment. So one is used
only a little later, and the older of two remains.

The stream publishes what it has kept (`republish`) on the subject of the topic, with its number and that of the message
before it on that topic. So a server hears, by ordinary subscriptions, the topics that it has subscribers for and no
others, and sees where a message is missing. A consumer for one topic then reads what that is. An acknowledgement that
was lost with the connection costs nothing: the stream knows by `Nats-Msg-Id` what it has already.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import datetime
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
import nats.errors
from nats.aio.client import Client

from fabric._connection.events import log_event
from fabric.broker import NO_EPOCH, BrokerUnavailable, Kept, Window
from fabric.broker.patience import first_of

__all__ = ["JetStream"]

logger = logging.getLogger("fabric.broker")

SUBJECT = "fabric-history"  # and a dot, and the topic
STREAM = "fabric-"  # and the epoch
INBOX = "_INBOX."  # of acknowledgements: as long as what the reader takes off a subject
OLDEST = (2, 9)  # version of nats-server
LONGER = 3600.0  # seconds for which the stream keeps a message after its ttl, see `JetStream._floor`
DOUBLES = 120.0  # seconds for which the stream knows what it has
SURE = 90.0  # seconds for which we rely on that
SAMPLES = 16  # see `JetStream._note`
SILENCE = 4.0  # seconds in which JetStream has to answer
GIVEN_UP = 60.0  # seconds after which nats-py gives up what we have given up before
RETRY = 0.2  # seconds between attempts
SETTLED = 0.5  # seconds after which no other stream appears that was made in the same moment
BATCH = 500  # messages that are asked for at a time
MOST_IN_VAIN = 10  # times in a row that we ask for messages and get none
BATCH_SIZE = 4 << 20  # bytes, likewise, besides the largest message
IDLE = 30  # seconds after which a consumer ends that we could not delete
NANO = 10**9
DIGITS = 19  # of the number of a message
# What taking an answer to pieces raises that is none of JetStream's.
MALFORMED = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
BUSY = 10008  # error of JetStream: it is temporarily unavailable
OVERLAP = 10065  # error of JetStream: another stream has these subjects
NO_STREAM = 10059  # error of JetStream
NUMBERED = b"\x04"  # the first byte of what a stream has sent, see `fabric.broker.Node`


class _Refused(Exception):
    """JetStream says why it cannot, and asking again does not help."""


class _ApiError(Exception):
    """JetStream answers with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("description") or error))
        self.code = error.get("err_code")


class _Acknowledgement(msgspec.Struct):
    """What JetStream answers to a message."""

    stream: str = ""
    seq: Annotated[int, msgspec.Meta(ge=0)] = 0
    error: dict[str, Any] | None = None


class _Append:
    """A message that JetStream has not confirmed."""

    __slots__ = ("done", "envelope", "number", "topic", "written")

    def __init__(self, topic: str, envelope: bytes, number: int) -> None:
        self.topic = topic
        self.envelope = envelope
        self.number = number
        self.written = 0.0  # loop time at which it was first sent
        self.done: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()


class JetStream:
    """The histories that a server uses.

    Args:
        explain: an error with a sentence.
        limit: bytes of messages that may wait.

    Attributes:
        HEAD: bytes that a message has more at most.
    """

    HEAD = 80

    def __init__(self, explain: Callable[[str, BaseException | None], BrokerUnavailable], limit: int) -> None:
        self._name = os.urandom(8).hex()
        self._acknowledgements = f"$acks-{self._name}."
        self._explain = explain
        self._limit = limit
        self._client: Client | None = None  # while there is a connection
        self._send: Callable[[bytes], object] | None = None
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refusal: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # the next one of a question
        self._unanswerable = ""  # why no answer can come; "": one can
        self._stream = ""  # its name, while it can be used
        self._newest = "", 0  # the newest number that was seen, and of which stream
        self._samples: collections.deque[tuple[float, int]] = collections.deque(maxlen=SAMPLES)
        self._wanted = 2, LONGER + 1  # messages of a topic, seconds
        self._has = 0, 0.0  # the same, as the stream has it
        self._grown = 0  # its newest number when it began to keep so many
        self._error: Exception | None = ConnectionError("there is no connection")
        self._changed = asyncio.Event()
        self._setup: asyncio.Task[None] | None = None
        self._unconfirmed: dict[int, _Append] = {}
        self._unwritten: list[_Append] = []
        self._size = 0  # bytes of those that are not confirmed
        self._fences: dict[str, tuple[str, asyncio.Future[None]]] = {}  # with their topics

    # -- life

    def connected(self, client: Client, send: Callable[[bytes], object]) -> None:
        """A connection begins, and has subscribed to what is known."""
        self._client, self._send = client, send
        loop = asyncio.get_running_loop()
        self._lost, self._refusal, self._unanswerable = loop.create_future(), loop.create_future(), ""
        send(b"SUB %b%b* fa\r\n" % (INBOX.encode(), self._acknowledgements.encode()))
        self._error = None
        if self._unconfirmed or self._newest[0]:
            self._begin()
        self._tell()

    def disconnected(self) -> None:
        """The connection is lost."""
        self._client = self._send = None
        self._stream = ""
        self._unwritten.clear()
        self._error = self._error or ConnectionError("the connection was lost")
        if self._setup is not None:
            self._setup.cancel()
            self._setup = None
        if not self._lost.done():
            self._lost.set_result(None)
        self._tell()

    async def close(self, timeout: float) -> None:
        """Wait until all is confirmed, so many seconds at most."""
        if self._unconfirmed and self._client is not None:
            await asyncio.wait([append.done for append in self._unconfirmed.values()], timeout=timeout)
        setup = self._setup
        self.disconnected()
        if setup is not None:
            await asyncio.wait([setup])
        self._give_up(self._explain("there is no connection", ConnectionError("the server has closed")))

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _begin(self) -> None:
        """Find the stream, or make it, unless that is done or under way."""
        if self._client is not None and not self._stream and self._setup is None:
            self._setup = asyncio.get_running_loop().create_task(self._prepare())

    def _begin_again(self) -> None:
        """Find the stream again, and send again what is not confirmed."""
        self._stream = ""
        self._unwritten.clear()
        self._begin()

    async def _prepare(self) -> None:
        while True:
            try:
                self._check_server()
                name = await self._find()
                await self._find_sent()
            except _Refused as error:
                self._error = error
                explained = self._explain("there are no histories", error)
                log_event(logger, logging.WARNING, "%s", explained)
                self._give_up(explained)
                break
            except (_ApiError, nats.errors.Error, OSError, TimeoutError) as error:
                if self._error is None:
                    log_event(logger, logging.WARNING, "%s", self._explain("there are no histories for now", error))
                self._error = error
            except Exception as error:  # noqa: BLE001  (logged, once while it stays the same)
                if repr(error) != repr(self._error):
                    log_event(logger, logging.ERROR, "the histories of a broker: what was not expected", exc_info=error)
                self._error = error
            else:
                self._stream, self._error = name, None
                self._unwritten = list(self._unconfirmed.values())
                self._write()
                break
            self._tell()
            await asyncio.sleep(RETRY)
        self._setup = None
        self._tell()

    def _check_server(self) -> None:
        if self._client is None:
            raise ConnectionError("there is no connection")
        if self._unanswerable:
            raise _Refused(self._unanswerable)
        info = self._client._server_info
        version = tuple(int(part) for part in str(info.get("version")).split(".")[:2] if part.isdecimal())
        if version < OLDEST:
            raise _Refused(f"histories need nats-server 2.9 or a newer one, it is version {info.get('version')}")
        if not info.get("jetstream"):
            raise _Refused("JetStream is not enabled: start nats-server with -js, or with jetstream { } configured")

    async def _search(self) -> dict[str, Any]:
        """What JetStream says of the stream; empty if there is none. Of several that were made at once one remains."""
        names = (await self._ask("STREAM.NAMES", {"subject": f"{SUBJECT}.>"})).get("streams") or []
        found = []
        for name in names:
            if not _epoch(name):
                raise _Refused(f"the subjects {SUBJECT}.> belong to the stream {name!r}, which is none of ours")
            with contextlib.suppress(_ApiError):  # it has just been deleted
                found.append(await self._ask(f"STREAM.INFO.{name}"))
        found.sort(key=lambda info: (info["created"], info["config"]["name"]))
        for info in found[1:]:
            with contextlib.suppress(_ApiError):  # another server was faster
                await self._ask(f"STREAM.DELETE.{info['config']['name']}")
        return found[0] if found else {}

    async def _find(self) -> str:
        """The name of the stream, which is made, or made larger, where it has to be."""
        while True:
            newest = self._newest  # as it is now: newer ones may come before the answer
            info = await self._search()
            size, age = self._wanted
            if not info:
                new = f"{STREAM}{os.urandom(8).hex()}"
                with contextlib.suppress(_ApiError):  # another server was faster
                    await self._ask(f"STREAM.CREATE.{new}", _config(new, size, age))
                continue
            name: str = info["config"]["name"]
            if _now(info) - _time(info["created"]) < SETTLED:
                await asyncio.sleep(SETTLED)
                continue
            last, config = info["state"]["last_seq"], info["config"]
            if newest[0] == name and last < newest[1]:
                # An old copy of the data: numbers would be given twice. Another server may delete it, too.
                log_event(
                    logger,
                    logging.WARNING,
                    "the stream %s has an old copy of its data: it is deleted, and another one made",
                    name,
                )
                with contextlib.suppress(_ApiError):
                    await self._ask(f"STREAM.DELETE.{name}")
                continue
            has = config["max_msgs_per_subject"], config["max_age"] / NANO
            if has[0] >= size and has[1] >= age:
                break
            if has[0] < size:
                config["description"] = str(last)
            config["max_msgs_per_subject"], config["max_age"] = max(has[0], size), int(max(has[1], age) * NANO)
            await self._ask(f"STREAM.UPDATE.{name}", config)
        if self._newest[0] != name or has != self._has:
            self._samples.clear()
        self._has = has
        grown = config.get("description") or "0"
        self._grown = int(grown) if grown.isdecimal() else 0
        self._note(name, last)
        return name

    async def _find_sent(self) -> None:
        """Confirm what the stream has, though it may know that no more by itself."""
        assert self._client is not None
        old = asyncio.get_running_loop().time() - SURE
        windows: dict[str, dict[bytes, int]] = {}
        for append in list(self._unconfirmed.values()):
            if not append.written or append.written > old:
                continue
            name = self._newest[0]
            if append.topic not in windows:
                kept, _, _ = await self._fetch(name, append.topic, 0)
                windows[append.topic] = {envelope: offset for offset, _, envelope in kept}
            offset = windows[append.topic].get(append.envelope)
            if offset is not None:
                self._confirm(append, (_epoch(name), offset))

    # -- questions

    async def _ask(self, what: str, body: dict[str, Any] | None = None) -> Any:
        """The answer of JetStream's API."""
        client = self._client
        if client is None:
            raise ConnectionError("there is no connection")
        data = b"" if body is None else json.dumps(body).encode()
        subject = f"$JS.API.{what}"
        try:
            reply = await self._answer(subject, client.request(subject, data, timeout=GIVEN_UP))
        except nats.errors.NoRespondersError:
            raise TimeoutError("JetStream is not there") from None
        answer = json.loads(reply.data)
        error = answer.get("error")
        if error is not None:
            if error.get("err_code") in (BUSY, OVERLAP, NO_STREAM):
                raise _ApiError(error)
            raise _Refused(str(error.get("description") or error))
        return answer

    async def _answer(self, subject: str, question: Awaitable[Any]) -> Any:
        """Wait for an answer, unless the connection is lost, or the question is refused, which had this subject."""
        asking = asyncio.ensure_future(question)
        lost, refusal, refused = self._lost, self._refusal, False
        try:
            while not asking.done() and not lost.done() and not refused:
                refusal = self._refusal
                await first_of([asking, lost, refusal], SILENCE)
                if not (asking.done() or lost.done() or refusal.done()):
                    raise TimeoutError("JetStream does not answer")
                refused = refusal.done() and (bool(self._unanswerable) or f'"{subject.lower()}"' in refusal.result())
        finally:
            if not asking.done():
                asking.cancel()
                await asyncio.wait([asking])
        if refused:
            raise _Refused(refusal.result())
        if asking.cancelled():
            raise ConnectionResetError("the connection was lost")
        return asking.result()

    def refused(self, text: str) -> None:
        """The server forbids something; is it ours?"""
        text = text.lower()
        if "$js." in text or INBOX.lower() in text:
            if "subscription" in text:
                self._unanswerable = text
                self._begin_again()
            refusal, self._refusal = self._refusal, asyncio.get_running_loop().create_future()
            refusal.set_result(text)
            return
        for topic, passed in self._fences.values():
            if f'"{SUBJECT}.{topic}"'.lower() in text and not passed.done():
                passed.set_result(None)
                return
        for append in self._unconfirmed.values():
            if f'"{SUBJECT}.{append.topic}"'.lower() in text:
                self._fail(append, self._explain("it does not take a message with history", Exception(text)))
                return

    # -- messages

    def append(
        self, topic: str, envelope: bytes, number: int, size: int, ttl: float
    ) -> asyncio.Future[tuple[str, int]]:
        """See `Broker.append`."""
        self._want(size, ttl)
        if isinstance(self._error, _Refused):
            self._begin()  # it may be cured by now
            raise self._explain("there are no histories", self._error)
        if self._size + len(envelope) > self._limit:
            raise self._explain("what waits for it is up to its bound", self._error)
        append = self._unconfirmed[number] = _Append(topic, envelope, number)
        self._size += len(envelope)
        if self._stream:
            if not self._unwritten:
                asyncio.get_running_loop().call_soon(self._write)
            self._unwritten.append(append)
        else:
            self._begin()
        return append.done

    def _want(self, size: int, ttl: float) -> None:
        """The stream has to keep one message more than a topic may have, which shows that nothing is missing."""
        self._wanted = max(self._wanted[0], size + 1), max(self._wanted[1], ttl + LONGER)
        if self._stream and (self._has[0] < self._wanted[0] or self._has[1] < self._wanted[1]):
            self._begin_again()

    def _write(self) -> None:
        appends, self._unwritten = self._unwritten, []
        if self._send is None or not self._stream or not appends:
            return
        now = asyncio.get_running_loop().time()
        commands = []
        for append in appends:
            append.written = append.written or now
            head = b"NATS/1.0\r\nNats-Msg-Id: %b-%d\r\n\r\n" % (self._name.encode(), append.number)
            reply = f"{INBOX}{self._acknowledgements}{append.number}"
            size = len(head) + len(append.envelope)
            commands.append(f"HPUB {SUBJECT}.{append.topic} {reply} {len(head)} {size}\r\n".encode())
            commands += (head, append.envelope, b"\r\n")
        self._send(b"".join(commands))

    def _acknowledged(self, topic: str, data: bytes) -> None:
        """An answer to a message has come."""
        number = topic[len(self._acknowledgements) :]
        if number in self._fences:
            passed = self._fences[number][1]
            if not passed.done():
                passed.set_result(None)
            return
        append = self._unconfirmed.get(int(number)) if number.isdecimal() and len(number) <= DIGITS else None
        if append is None:
            return
        try:
            answer = msgspec.json.decode(data or b"{}", type=_Acknowledgement)
        except (msgspec.MsgspecError, RecursionError):
            answer = _Acknowledgement()
        error, name, offset = answer.error, answer.stream, answer.seq
        if _epoch(name) and offset:
            self._note(name, offset)
            self._confirm(append, (_epoch(name), offset))
        elif error is None or error.get("err_code") == BUSY:  # there is no stream, or nobody who has it, for now
            if self._stream:
                self._begin_again()
        else:
            self._fail(append, self._explain("it does not take a message with history", _ApiError(error)))

    def _confirm(self, append: _Append, position: tuple[str, int]) -> None:
        self._take(append)
        if not append.done.done():
            append.done.set_result(position)

    def _fail(self, append: _Append, error: BrokerUnavailable) -> None:
        self._take(append)
        if not append.done.done():
            append.done.set_exception(error)
            append.done.exception()  # nobody may wait for it

    def _take(self, append: _Append) -> None:
        del self._unconfirmed[append.number]
        self._size -= len(append.envelope)

    def _give_up(self, error: BrokerUnavailable) -> None:
        for append in list(self._unconfirmed.values()):
            self._fail(append, error)
        self._unwritten.clear()

    def look(self) -> None:
        """See now and then whether JetStream answers: what waits for too long is sent again."""
        oldest = next(iter(self._unconfirmed.values()), None)
        if self._stream and oldest is not None and oldest.written:
            waits = asyncio.get_running_loop().time() - oldest.written
            if waits > SILENCE:
                self._begin_again()

    def _note(self, name: str, number: int) -> None:
        """The stream has come to this number. Some of those are remembered with their times, see `_floor`."""
        if self._newest[0] != name:
            self._samples.clear()
            self._newest = name, number
        self._newest = name, max(self._newest[1], number)
        now = time.monotonic()
        if not self._samples or now - self._samples[-1][0] > self._has[1] / (SAMPLES - 2):
            self._samples.append((now, self._newest[1]))

    def taken_out(self, batch: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        """The batch without acknowledgements."""
        left, newest = [], b""
        for each in batch:
            if each[0].startswith(self._acknowledgements):
                self._acknowledged(*each)
            else:
                left.append(each)
                if each[1][:1] == NUMBERED:
                    newest = each[1]
        if self._newest[0] == STREAM + newest[1:17].decode(errors="replace") and newest[17:33].isdigit():
            self._note(self._newest[0], int(newest[17:33]))
        return left

    # -- windows

    async def read(
        self, topic: str, size: int, ttl: float, known: tuple[str, int] | None, after: int, *, wait: bool
    ) -> Window:
        """See `Broker.read`."""
        self._want(size, ttl)
        while not self._stream:
            self._begin()
            if self._error is not None and not wait:  # else it is about to be there
                raise self._explain("there are no histories", self._error)
            wait = False  # for longer than the next attempt takes
            await self._changed.wait()
        name = self._stream
        if known is None or known[0] != _epoch(name):
            after = 0
        window = await self._explained(self._window(name, topic, size, ttl, after))
        if known is None:
            await self._fence(topic)
        return window

    async def _fence(self, topic: str) -> None:
        """Wait until all has come that the stream has kept of a topic so far, for those who hear it already.

        It is read sooner than it is sent, and no answer tells when that is. Only what a stream answers to a message
        stands behind what it has sent before: so it is given one that it does not take, as it is for another stream.
        """
        if self._send is None:
            return
        number = f"fence-{os.urandom(8).hex()}"
        passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fences[number] = topic, passed
        head = b"NATS/1.0\r\nNats-Expected-Stream: none\r\n\r\n"
        reply = f"{INBOX}{self._acknowledgements}{number}"
        try:
            self._send(f"HPUB {SUBJECT}.{topic} {reply} {len(head)} {len(head)}\r\n".encode() + head + b"\r\n")
            await first_of([passed, self._lost], SILENCE)
        finally:
            del self._fences[number]

    async def peek(self, topic: str, size: int, ttl: float) -> Window:
        """See `Broker.peek`. All of a topic is read: a stream cannot be read backwards."""
        if self._client is None:
            raise self._explain("there is no connection", self._error)

        async def window() -> Window:
            self._check_server()
            name = self._stream
            if not name:
                info = await self._search()
                if not info:
                    return Window(NO_EPOCH, 0, 0, [])
                name = info["config"]["name"]
            return await self._window(name, topic, size, ttl, 0)

        return await self._explained(window())

    async def _explained(self, reading: Awaitable[Window]) -> Window:
        try:
            return await reading
        except (_Refused, _ApiError, nats.errors.Error, OSError, TimeoutError, *MALFORMED) as error:
            self._begin_again()  # the stream may be another one by now
            raise self._explain("it does not give a history", error) from error

    async def _window(self, name: str, topic: str, size: int, ttl: float, after: int) -> Window:
        newest = self._newest[1] if self._newest[0] == name else 0
        if after and await self._last(name, topic) == after:
            return Window(_epoch(name), after, after, [])
        kept, now, count = await self._fetch(name, topic, after)
        if count > size:
            floor = kept[-size - 1].offset
            kept = kept[-size:]
        elif after and kept and kept[0].offset == after:
            floor = after
        else:
            floor = await self._floor(name)
        top = kept[-1].offset if kept else max(newest, floor)
        fresh = []
        for offset, at, envelope in kept:
            if now - at > ttl:
                floor = max(floor, offset)
            elif offset > after:
                fresh.append(Kept(offset, max(0.0, now - at), envelope))
        return Window(_epoch(name), top, floor, fresh)

    async def _floor(self, name: str) -> int:
        """A number after which the stream has removed nothing of a topic that has not more messages than it may have.

        It removes what is older than it may be, so all before its first message. But that first one grows as fast as
        its busiest topic, and another topic may just have no messages. So what was its newest message some time ago
        is as good: what came after that is not old enough. That is why it keeps all for longer than the topics do.
        """
        info = await self._ask(f"STREAM.INFO.{name}")
        floor: int = max(0, info["state"]["first_seq"] - 1)
        now = time.monotonic()
        if self._newest[0] == name:
            for at, number in self._samples:
                if now - at < self._has[1] - 1:
                    floor = min(floor, number)
                    break
        return max(floor, self._grown)

    async def _last(self, name: str, topic: str) -> int:
        """The number of the newest message of a topic; 0 if there is none."""
        client = self._client
        if client is None:
            raise ConnectionError("there is no connection")
        subject = f"$JS.API.DIRECT.GET.{name}.{SUBJECT}.{topic}"
        try:
            reply = await self._answer(subject, client.request(subject, b"", timeout=GIVEN_UP))
        except nats.errors.NoRespondersError:
            raise TimeoutError("JetStream is not there") from None
        headers: dict[str, str] = reply.headers or {}
        return int(headers.get("Nats-Sequence", "0"))

    async def _fetch(self, name: str, topic: str, start: int) -> tuple[list[Kept], float, int]:
        """All messages of a topic from a number on, with their times in place of their ages; the time; their number."""
        client = self._client
        if client is None:
            raise ConnectionError("there is no connection")
        consumer: dict[str, Any] = {
            "deliver_policy": "by_start_sequence" if start else "all",
            "ack_policy": "none",
            "replay_policy": "instant",
            "filter_subject": f"{SUBJECT}.{topic}",
            "mem_storage": True,
            "inactive_threshold": IDLE * NANO,
        }
        if start:
            consumer["opt_start_seq"] = start
        made = await self._ask(f"CONSUMER.CREATE.{name}", {"stream_name": name, "config": consumer})
        now = _now(made)
        count = made["num_pending"]
        kept: list[Kept] = []
        inbox = await client.subscribe(client.new_inbox())
        try:
            in_vain = had = 0
            while len(kept) < count and await self._next(client, inbox, name, made["name"], kept, count - len(kept)):
                in_vain, had = (in_vain + 1 if len(kept) == had else 0), len(kept)
                if in_vain > MOST_IN_VAIN:
                    raise TimeoutError("JetStream gives nothing of what it has")
            await client.publish(f"$JS.API.CONSUMER.DELETE.{name}.{made['name']}", b"", reply=inbox.subject)
        finally:
            with contextlib.suppress(nats.errors.Error):
                await inbox.unsubscribe()
        return kept, now, len(kept)

    async def _next(self, client: Client, inbox: Any, name: str, consumer: str, kept: list[Kept], most: int) -> bool:
        """Ask for some more messages; False if there are none."""
        batch = min(BATCH, most)
        question = {"batch": batch, "no_wait": True, "max_bytes": BATCH_SIZE + client.max_payload}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{name}.{consumer}"
        await client.publish(subject, json.dumps(question).encode(), reply=inbox.subject)
        for _ in range(batch):
            message = await self._answer(subject, inbox.next_msg(timeout=GIVEN_UP))
            if not message.reply:  # a status: that there are none, or that it has sent as many bytes as it should
                return (message.headers or {}).get("Status") != "404"
            about = message.metadata
            kept.append(Kept(about.sequence.stream, about.timestamp.timestamp(), message.data))
        return True


def _config(name: str, size: int, age: float) -> dict[str, Any]:
    return {
        "name": name,
        "subjects": [f"{SUBJECT}.>"],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "num_replicas": 1,
        "max_msgs_per_subject": size,
        "max_age": int(age * NANO),
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "duplicate_window": int(DOUBLES * NANO),
        "allow_direct": True,
        "republish": {"src": f"{SUBJECT}.>", "dest": "fabric.>"},
    }


def _epoch(name: str) -> str:
    """The epoch in the name of a stream; empty if it is none of ours."""
    return name[len(STREAM) :] if name.startswith(STREAM) and len(name) == len(STREAM) + 16 else ""


def _now(answer: dict[str, Any]) -> float:
    """The time at which JetStream answered: nats-server's own from 2.10 on."""
    return _time(answer["ts"]) if "ts" in answer else time.time()


def _time(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()
