"""Histories of topics in Redis, or Valkey: a stream for each topic, written and read by Lua scripts, over a connection.

A script numbers a message, keeps it and publishes it, in one step. The messages that Redis has not confirmed yet are
sent again after a loss of the connection; each carries a number of its server, by which the script leaves out what
Redis has already. So each is kept once, however often the connection is lost.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any

import hiredis

from fabric._connection.events import log_event
from fabric.broker import NO_EPOCH, BrokerUnavailable, Kept, Window
from fabric.broker.patience import first_of

__all__ = ["Replies", "Streams", "pack"]

logger = logging.getLogger("fabric.broker")

STREAM, META, NUMBER = "fabric-stream:", "fabric-meta:", "fabric-number:"  # of keys
REMEMBERED = 30 * 86400  # seconds for which the epoch of a quiet topic is kept
NUMBERS = 86400  # seconds for which the number of a server is kept that has published
RECONNECT_WAIT = 0.1  # seconds between attempts
PROBE_INTERVAL = 2.0  # seconds
SILENCE = 4.0  # seconds in which a connection has to answer
MOST_READS = 10_000  # that wait for an answer
AGAIN = ("NOSCRIPT", "LOADING")  # errors of Redis after which to connect anew
MALFORMED = (TypeError, ValueError, AttributeError)  # what taking a reply to pieces raises that is none of our scripts'
REFUSALS = ("NOPERM", "NOAUTH", "WRONGPASS", "ERR")  # errors of Redis that do not pass by themselves

# Both scripts begin with this: they read the epoch and the newest offset. If the data is older than what the server has
# seen, because Redis was started with an old copy, a new epoch begins; else offsets would be used twice.
HEAD = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local meta = redis.call('HMGET', KEYS[2], 'epoch', 'top')
local epoch, top = meta[1], tonumber(meta[2] or '0')
if not epoch or (epoch == ARGV[2] and top < tonumber(ARGV[3])) then
  epoch, top = ARGV[1], 0
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[2], 'epoch', epoch, 'top', 0)
  redis.call('EXPIRE', KEYS[2], ARGV[4])
end
local size, ttl = tonumber(ARGV[5]), tonumber(ARGV[6])
"""
# ARGV from 7: channel, envelope, number.
APPEND = (
    HEAD
    + """
local last = redis.call('GET', KEYS[3])
if last and tonumber(ARGV[9]) <= tonumber(last) then
  for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], '+', '-')) do
    if entry[2][4] == ARGV[8] then return {epoch, tonumber(string.match(entry[1], '^%d+'))} end
  end
  return {epoch, 0}
end
top = top + 1
local offset = string.format('%.0f', top)
redis.call('XADD', KEYS[1], 'MAXLEN', size, offset .. '-0', 'at', string.format('%.0f', now), 'data', ARGV[8])
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 4)) do
  if (tonumber(entry[2][2]) or 0) >= now - ttl then break end
  redis.call('XDEL', KEYS[1], entry[1])
end
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('HSET', KEYS[2], 'top', offset)
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('SET', KEYS[3], ARGV[9], 'EX', ARGV[10])
redis.call('PUBLISH', ARGV[7], '\\4' .. epoch .. string.format('%016.0f%016.0f', top, top - 1) .. ARGV[8])
return {epoch, top}
"""
)
# ARGV[7]: only what comes after this offset.
READ = (
    HEAD
    + """
local floor = top
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if first then floor = tonumber(string.match(first[1], '^%d+')) - 1 end
local start = '-'
if epoch == ARGV[2] then start = string.format('%.0f-0', tonumber(ARGV[7]) + 1) end
return {epoch, top, floor, now, redis.call('XRANGE', KEYS[1], start, '+')}
"""
)
# KEYS as above, ARGV: ttl, offset or '', limit or -1, 1 for the newest first, epoch or ''. It changes nothing. The
# first message that is not too old is searched for by halves, as times grow with offsets.
PEEK = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local meta = redis.call('HMGET', KEYS[2], 'epoch', 'top')
local epoch, top = meta[1], tonumber(meta[2] or '0')
if not epoch then return {false, 0, 0, now, {}} end
local function id(offset) return string.format('%.0f', offset) end
local function first(offset)
  local entry = redis.call('XRANGE', KEYS[1], id(offset), '+', 'COUNT', 1)[1]
  if entry then return tonumber(string.match(entry[1], '^%d+')), tonumber(entry[2][2]) or 0 end
end
local low, high = first(0) or top + 1, top + 1
while low < high do
  local middle = math.floor((low + high) / 2)
  local offset, at = first(middle)
  if not offset or at >= now - tonumber(ARGV[1]) then high = middle else low = offset + 1 end
end
local from, to, count = id(low), '+', tonumber(ARGV[3])
if ARGV[2] ~= '' then
  if ARGV[5] ~= epoch then count = 0 end
  if ARGV[4] == '1' then
    to = id(tonumber(ARGV[2]) - 1)
    if tonumber(ARGV[2]) <= low then count = 0 end
  else
    from = id(math.max(low, tonumber(ARGV[2]) + 1))
  end
end
local entries = {}
if count ~= 0 then
  local command, start, stop = 'XRANGE', from, to
  if ARGV[4] == '1' then command, start, stop = 'XREVRANGE', to, from end
  if count > 0 then
    entries = redis.call(command, KEYS[1], start, stop, 'COUNT', count)
  else
    entries = redis.call(command, KEYS[1], start, stop)
  end
end
return {epoch, top, low - 1, now, entries}
"""


SCRIPTS = APPEND, READ, PEEK
HASHES = tuple(hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest() for script in SCRIPTS)


class Replies(asyncio.Protocol):
    """A connection on which each command has one reply, in order."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: collections.deque[Callable[[Any], None]] = collections.deque()
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: BaseException | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self.error = self.error or exc
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Replies have come."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                if not self._waiting:
                    raise hiredis.ProtocolError("a reply that nobody waits for")
                self._waiting.popleft()(reply)
        except hiredis.ProtocolError as error:
            self.error = error
            self._transport.abort()

    def write(self, data: bytes, *replies: Callable[[Any], None]) -> None:
        """Send commands, and call a function with the reply to each; nothing happens if the connection has ended."""
        if self.lost.done() or self._transport.is_closing():  # uvloop would raise
            return
        self._waiting.extend(replies)
        self._transport.write(data)

    async def call(self, *words: str | bytes, timeout: float = SILENCE) -> Any:
        """Send a command, and wait for its reply.

        Raises:
            hiredis.HiredisError, OSError, TimeoutError: there is no reply, or it is an error.
        """
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.write(pack(*words), lambda reply: None if done.done() else done.set_result(reply))
        await first_of([done, self.lost], timeout)
        if not done.done():
            done.cancel()
            if self.lost.done():
                raise self.error or ConnectionResetError("the connection was lost")
            raise TimeoutError("it does not answer")
        if isinstance(reply := done.result(), hiredis.HiredisError):
            raise reply
        return reply

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()


class _Append:
    """A message that Redis has not confirmed."""

    __slots__ = ("command", "done")

    def __init__(self, command: bytes) -> None:
        self.command = command
        self.done: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()


class Streams:
    """The histories that a server uses.

    Args:
        connect: makes a connection, with the protocol that it is given, and logs in.
        explain: makes the error to raise, of a sentence and its cause.
        node: names the server among all that use this Redis.
        limit: bytes of messages that may wait.
    """

    def __init__(
        self,
        connect: Callable[[Callable[[], Replies]], Awaitable[Replies]],
        explain: Callable[[str, BaseException | None], BrokerUnavailable],
        node: str,
        limit: int,
    ) -> None:
        self._connect = connect
        self._explain = explain
        self._number_key = f"{NUMBER}{node}"
        self._limit = limit
        self._connection: Replies | None = None
        self._error: BaseException | None = None
        self._unconfirmed: collections.deque[_Append] = collections.deque()
        self._size = 0  # bytes of those
        self._unwritten: list[_Append] = []  # the last of those, where there is a connection
        self._reads = 0
        self._changed = asyncio.Event()
        self._life = asyncio.ensure_future(self._live())

    # -- life

    async def close(self, timeout: float) -> None:
        """Wait until all is confirmed, `timeout` seconds at most, and disconnect."""
        if self._unconfirmed and self._connection is not None:
            await asyncio.wait([self._unconfirmed[-1].done], timeout=timeout)
        self._life.cancel()
        await asyncio.wait([self._life])
        self._error = ConnectionResetError("the server has closed")
        self._changed.set()
        self._give_up(self._explain("there is no connection", self._error))

    async def _live(self) -> None:
        while True:
            connection: Replies | None = None
            try:
                connection = await self._connect(Replies)
                for script in SCRIPTS:
                    await connection.call("SCRIPT", "LOAD", script)
                self._begin(connection)
                while not connection.lost.done():
                    await asyncio.wait([connection.lost], timeout=PROBE_INTERVAL)
                    await connection.call("PING")
            except (OSError, TimeoutError, hiredis.HiredisError) as error:
                self._failed(error)
            except Exception as error:  # noqa: BLE001  (logged, once while it stays the same)
                if repr(error) != repr(self._error):
                    log_event(logger, logging.ERROR, "the histories of a broker: what was not expected", exc_info=error)
                self._failed(error)
            finally:
                self._connection = None
                if connection is not None:
                    connection.abort()
            await asyncio.sleep(RECONNECT_WAIT)

    def _begin(self, connection: Replies) -> None:
        """Send again what is not confirmed, and then what follows."""
        self._connection, self._error = connection, None
        self._unwritten = list(self._unconfirmed)
        self._write()
        self._tell()

    def _failed(self, error: Exception) -> None:
        """There is no connection for now; if Redis refuses us, what waits for it fails."""
        explained = self._explain("there are no histories", error)
        if self._error is None:
            log_event(logger, logging.WARNING, "%s", explained)
        self._connection, self._error = None, error
        if self._is_refused():
            self._give_up(explained)
        self._tell()

    def _is_refused(self) -> bool:
        return isinstance(self._error, hiredis.ReplyError) and str(self._error).startswith(REFUSALS)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _give_up(self, error: BrokerUnavailable) -> None:
        """Fail all messages that Redis has not confirmed."""
        for append in self._unconfirmed:
            if not append.done.done():
                append.done.set_exception(error)
                append.done.exception()  # perhaps no task waits for it
        self._unconfirmed.clear()
        self._unwritten.clear()
        self._size = 0

    # -- messages

    def append(
        self,
        topic: str,
        channel: bytes,
        envelope: bytes,
        number: int,
        size: int,
        ttl: float,
        known: tuple[str, int] | None,
    ) -> asyncio.Future[tuple[str, int]]:
        """See `Broker.append`."""
        if self._is_refused():
            raise self._explain("there are no histories", self._error)
        if self._size + len(envelope) > self._limit:
            raise self._explain("what waits for it is up to its bound", self._error)
        tail: tuple[str | bytes, ...] = (channel, envelope, str(number), str(NUMBERS))
        append = _Append(self._command(0, [*_keys(topic), self._number_key], size, ttl, known, *tail))
        self._size += len(append.command)
        self._unconfirmed.append(append)
        if self._connection is not None:
            if not self._unwritten:
                asyncio.get_running_loop().call_soon(self._write)
            self._unwritten.append(append)
        return append.done

    def _command(
        self, script: int, keys: list[str], size: int, ttl: float, known: tuple[str, int] | None, *more: str | bytes
    ) -> bytes:
        epoch, top = known or ("", 0)
        head = [os.urandom(8).hex(), epoch, str(top), str(REMEMBERED), str(size), _milliseconds(ttl)]
        return pack("EVALSHA", HASHES[script], str(len(keys)), *keys, *head, *more)

    def _write(self) -> None:
        appends, self._unwritten = self._unwritten, []
        if self._connection is not None and appends:
            self._connection.write(b"".join(append.command for append in appends), *[self._confirm] * len(appends))

    def _confirm(self, reply: Any) -> None:
        """The oldest message that is not confirmed is answered."""
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith(AGAIN):
            if self._connection is not None:
                self._connection.abort()  # it is all sent again
            raise hiredis.ProtocolError(str(reply))
        append = self._unconfirmed.popleft()
        self._size -= len(append.command)
        if append.done.done():
            return
        try:
            epoch, offset = reply
            append.done.set_result((epoch.decode("ascii"), int(offset)))
        except MALFORMED:
            error = reply if isinstance(reply, Exception) else None
            append.done.set_exception(self._explain("it does not take a message with history", error))
            append.done.exception()

    async def read(
        self, topic: str, size: int, ttl: float, known: tuple[str, int] | None, after: int, *, wait: bool
    ) -> Window:
        """See `Broker.read`."""
        command = self._command(1, list(_keys(topic)), size, ttl, known, str(after))
        window = await self._ask(command, wait=wait)
        floor = max((offset for offset, age, _ in window.kept if age > ttl), default=window.floor)
        return window._replace(floor=floor, kept=[each for each in window.kept if each.age <= ttl])

    async def peek(
        self, topic: str, ttl: float, since: tuple[str, int] | None, limit: int | None, *, reverse: bool
    ) -> Window:
        """See `Broker.peek`."""
        epoch, offset = (b"", "") if since is None else (since[0].encode(errors="replace"), str(since[1]))
        numbers = [_milliseconds(ttl), offset, str(-1 if limit is None else limit), str(int(reverse))]
        command = pack("EVALSHA", HASHES[2], "2", *_keys(topic), *numbers, epoch)
        window = await self._ask(command, wait=False)
        return window._replace(kept=window.kept[::-1]) if reverse else window

    async def _ask(self, command: bytes, *, wait: bool) -> Window:
        """What a script has read."""
        while (connection := self._connection) is None:
            if self._error is not None and not wait:  # without an error the first attempt is under way
                raise self._explain("there is no connection", self._error)
            wait = False  # for one attempt only
            await self._changed.wait()
        if self._reads >= MOST_READS:
            raise self._explain("too many histories are asked for", None)
        self._write()
        self._reads += 1
        try:
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            connection.write(command, lambda reply: None if done.done() else done.set_result(reply))
            await first_of([done, connection.lost], SILENCE)
        finally:
            self._reads -= 1
        if not done.done():
            done.cancel()
            raise self._explain("it does not answer", connection.error)
        reply = done.result()
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith(AGAIN):
            connection.abort()  # the scripts are loaded anew
        try:
            epoch, top, floor, now, entries = reply
            if epoch is None:
                return Window(NO_EPOCH, 0, 0, [])
            return Window(epoch.decode("ascii"), int(top), int(floor), _kept(int(now), entries))
        except MALFORMED:
            error = reply if isinstance(reply, Exception) else None
            raise self._explain("it does not give a history", error) from None


def _kept(now: int, entries: list[Any]) -> list[Kept]:
    """The messages among the entries of a stream."""
    kept = []
    for key, fields in entries:
        try:
            offset, age, envelope = int(key.partition(b"-")[0]), (now - int(fields[1])) / 1000, fields[3]
        except (ValueError, IndexError, OverflowError):
            continue  # not written by `append`
        if not isinstance(envelope, bytes):
            raise ValueError("no envelope")
        kept.append(Kept(offset, max(0.0, age), envelope))
    return kept


def _milliseconds(ttl: float) -> str:
    return str(max(1, int(ttl * 1000)))


def _keys(topic: str) -> tuple[str, str]:
    return f"{STREAM}{topic}", f"{META}{topic}"


def pack(*words: str | bytes) -> bytes:
    """A command, as the protocol of Redis (RESP) has it."""
    encoded = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n%b" % (len(words), b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded))
