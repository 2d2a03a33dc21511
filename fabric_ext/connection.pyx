# cython: binding=False
"""One WebSocket connection over picows' transport: frames in, messages out, and the other way round.

Owns a connection from the end of its handshake to the loss of its transport, and again with the next transport when
its owner reconnects. Decides with small integers and close codes; the Python class above it (`fabric._connection.base.Peer`) turns
them into exceptions, reconnects, waits. The hooks it overrides are at the end of this file.

Only this module knows picows. Whose fault a thing was does not matter to users, so what picows leaves to us is done
here: masking keys, message limits, reserved bits, UTF-8, the order of fragments, pongs, and the close handshake.
"""

import asyncio
import codecs
import re

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_GET_LENGTH
from cython cimport final, likely, unlikely
from libc.stdint cimport int64_t, uint8_t
from picows.picows cimport MemoryBuffer, WSFrame, WSListener, WSTransport

from fabric_ext.bucket cimport RateGate, monotonic_ns
from fabric_ext.counters cimport Counters, coarse_monotonic_ns
from fabric_ext.deflate cimport Codec
from fabric_ext.inbox cimport Recv
from fabric_ext.message cimport K_CLOSE, K_CONTINUATION, K_PONG, K_TEXT, Message, new_message
from fabric_ext.protocol cimport (CLOSE_BEGUN, CLOSED, CLOSING, ENDED, LOST, OPEN, OPENED, CloseFrame,
                                  check_data_frame, next_state, read_close)
from fabric_ext.reassembly cimport (V_BAD_UTF8, V_EXPECTED_CONTINUATION, V_MESSAGE, V_MORE, V_TOO_LARGE,
                                    V_TOO_MANY_FRAGMENTS, V_UNEXPECTED_CONTINUATION, Assembler)
from fabric_ext.ring cimport Ring
from fabric_ext.sender cimport Sender

from picows.picows import WSProtocol

from fabric_ext.deflate import CorruptData, OutputLimit
from fabric_ext.protocol import State

cdef extern from "Python.h":
    object PyUnicode_DecodeUTF8(const char* p, Py_ssize_t n, const char* errors)
    int PyUnicode_KIND(object text) noexcept
    Py_buffer* PyMemoryView_GET_BUFFER(object view) noexcept

cdef enum Pause:
    QUEUE_FULL = 1
    OVER_RATE = 2
    OVERDRAWN = 4                # more was taken from the rate limit than it had

cdef enum GateAction:
    SLOW = 0
    DROP = 1
    CLOSE = 2

cdef enum StreamMode:
    WHOLE = 0                    # messages are delivered whole
    PARTS = 1                    # the next message is delivered part by part
    SKIP = 2                     # the rest of the current message is not wanted any more
    SKIP_THEN_PARTS = 3          # and the one after it is to be delivered part by part

cdef enum:
    MAX_REASON = 123             # bytes: RFC 6455 §5.5, 125 less the code
    MAX_READ = 128 * 1024        # bytes in one read
    GATHER = 16                  # messages of one read for which a waiting task is resumed once
    GATHER_BYTES = 16 * 1024

cdef dict GATE_ACTIONS = {"slow": SLOW, "drop": DROP, "close": CLOSE}
cdef object wsprotocol_get_buffer = WSProtocol.get_buffer

# picows gives each transport 1 KB to write from; we write for it, except when its parser finds a fault and it sends
# a close frame. All transports can share one buffer: it is filled and written in one call.
cdef MemoryBuffer SHARED_WRITE_BUFFER = MemoryBuffer(1024)


cdef inline Py_ssize_t weight(Message message):
    """Bytes that a queued message keeps in memory, give or take its header."""
    if message.kind == K_TEXT:
        return PyUnicode_GET_LENGTH(message.data) * PyUnicode_KIND(message.data)
    return PyBytes_GET_SIZE(message.data)


@final
cdef class Part:
    """One part of a message that is received as a stream."""

    cdef readonly object data    # str or bytes
    cdef readonly bint final
    cdef readonly bint is_cut_off    # no part: the connection was lost, and the rest of the message with it


cdef Part cut_off_part():
    cdef Part part = Part.__new__(Part)
    part.data = b""
    part.final = part.is_cut_off = True
    return part


@final
cdef class Link(WSListener):
    """What picows calls: ties one transport to its connection.

    A connection outlives its transports. When it lets one go it severs the link, and whatever that transport still
    reports reaches nobody. It is a final C class of its own, not the connection itself, because picows would look up
    `on_ws_frame` by name for every frame of a listener that has a Python subclass.

    It also stands in for picows' logger and, once connected, for the transport that picows sees. Its parser tells of a
    fault nobody but the logger, before it acts: then it would send a close frame of its own, ahead of what the frames
    before the fault have yet to cause, and hang up after 10 ms.
    """

    cpdef on_ws_connected(self, WSTransport transport):
        if self._connection is not None:
            self._connection.on_connected(self, transport)

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        cdef Connection connection = self._connection
        if not self._hub.reading:
            self._hub.begin_read()
            if connection is not None:
                connection.begin_delivery()
                connection._counters.last_activity_ns = coarse_monotonic_ns()
        if connection is not None:
            connection.on_frame(frame)
        if frame.last_in_buffer:
            self._hub.reading = False
            if self._hub._dirty is not None:
                self._hub.flush_all()

    cpdef on_ws_disconnected(self, WSTransport transport):
        if self._connection is not None:
            self._connection.on_disconnected(transport)

    cpdef pause_writing(self):
        if self._connection is not None:
            self._connection.on_blocked(True)

    cpdef resume_writing(self):
        if self._connection is not None:
            self._connection.on_blocked(False)

    # -- as picows' logger

    def isEnabledFor(self, level):
        return False

    def log(self, *args):
        pass

    debug = info = warning = log

    def error(self, text, fault):
        """The parser found a fault: `fault` is (close code, sentence)."""
        if self._connection is not None:
            self._connection.on_fault(fault[0], fault[1])

    def exception(self, text):
        """The parser failed, for want of memory most likely."""
        if self._connection is not None:
            self._connection.on_fault(1011, "frame cannot be read")

    # -- as picows' transport

    def close(self):
        pass

    abort = close


class Reader(WSProtocol):
    """picows' protocol; but a flood does not make its buffer grow to all that the system holds for us, and bytes are
    a sign of life before they are a frame. `link` is set by who makes it.
    """

    __slots__ = ("link",)

    def get_buffer(self, size_hint):
        cdef Connection connection = (<Link?>self.link)._connection
        if connection is not None:
            connection._inbound_seen = True
        free = wsprotocol_get_buffer(self, size_hint)
        return free if PyMemoryView_GET_BUFFER(free).len <= MAX_READ else free[:MAX_READ]


class Drain(asyncio.Protocol):
    """The protocol of a transport whose connection has been failed: throws away what still comes.

    Hanging up with bytes unread would reset the connection and could destroy our close frame on its way.
    """

    def __init__(self, link, transport):
        self._link = link
        self._transport = transport

    def data_received(self, data):
        pass

    def connection_lost(self, exc):
        self._link.on_ws_disconnected(self._transport)


cdef class Connection(Sender):
    """The base of `WebSocketClient` and `ConnectedClient`."""

    def __init__(self, loop, bint masking, Counters counters not None):
        Sender.__init__(self, loop, masking, counters)
        self._close_text = ""

    def _configure(self, *, Py_ssize_t max_message_size, Py_ssize_t max_fragments, Py_ssize_t queue_limit,
                   Py_ssize_t queue_byte_limit, Py_ssize_t fragment_size, double close_timeout, on_message=None):
        """Set what stays the same over all transports. Sizes in bytes; `fragment_size` 0 never splits."""
        self._max_message_size = max_message_size
        self._max_fragments = max_fragments
        self._queue_limit = queue_limit
        self._queue_byte_limit = queue_byte_limit
        self._gather_limit = min(GATHER, queue_limit)
        self._gather_byte_limit = min(GATHER_BYTES, queue_byte_limit)
        self._fragment_size = fragment_size
        self._close_timeout = close_timeout
        self._on_message = on_message

    def _limit_rate(self, RateGate gate, str on_exceed, str on_shared_exceed):
        """Ask `gate` for what arrives; say what to do when its own buckets refuse, and when the shared ones do."""
        self._gate = gate
        self._gate_action = GATE_ACTIONS[on_exceed]
        self._shared_action = GATE_ACTIONS[on_shared_exceed]

    def _new_link(self):
        """The listener for the next transport; severs the one before."""
        if self._link is not None:
            self._link._connection = None
        cdef Link link = Link.__new__(Link)
        link._connection = self
        link._hub = self._hub
        self._link = link
        return link

    def _set_codec(self, Codec codec):
        """Compression as negotiated for the transport that is about to open; None for none."""
        self._codec = codec

    # ------------------------------------------------------------------ the transport comes and goes

    cdef int on_connected(self, Link link, WSTransport transport) except -1:
        self._transport = transport
        self._io = link.transport
        self._write = self._io.write
        self._io.set_write_buffer_limits(high=0)       # `_blocked` is then: the transport holds something
        self._fd = -1 if transport.is_secure else transport._socket
        self._blocked = self._lost = self._deaf = self._discarding = self._fragmenting = self._inflating = False
        self._taken_back = 0
        self._unfinished = None
        self._read_pauses = 0
        self._sent_code = self._received_code = 0
        self._close_text = ""
        self._failure = None
        self._pong_due = None
        self._stream_kind = 0
        self._end_skip()
        if self._assembler is not None:
            self._assembler.reset()
        transport._write_buffer = SHARED_WRITE_BUFFER
        transport.underlying_transport = link
        self._inbound_seen = True
        self._move(OPENED)
        try:
            self._opened(transport.request, transport.response)
        except Exception as error:                             # picows would only tell its logger
            self._on_error(error)
            self._refuse(1011, "internal error")
        transport.request = transport.response = None  # whoever wants them has kept them
        return 0

    cdef int on_disconnected(self, WSTransport transport) except -1:
        cdef bint cut_off = self._stream == PARTS and self._stream_kind != 0
        self._release_transport()
        self._on_lost()
        if cut_off and self._state != CLOSED:                  # whoever waits for its next part must not get another's
            self._stream = WHOLE
            self.begin_delivery()
            self._enqueue(cut_off_part())
        return 0

    def _release_transport(self):
        """Let go of the transport; what it still reports is ignored."""
        if self._link is not None:
            self._link._connection = None
            self._link = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport = self._io = self._write = None
        self._fd = -1
        self._blocked = True
        self._sendable = False
        if self._out_size:
            self._take_back(self.take_output())
        self._release_held()
        if self._assembler is not None:
            self._assembler.reset()
        self._codec = None

    cdef int _move(self, int event) except -1:
        cdef int after = next_state(self._state, event)
        if after < 0:
            raise RuntimeError(f"fabric: no move from {State(self._state).name} by event {event}")
        self._state = after
        self._update_sendable()
        return 0

    def _lose(self):
        """The transport is gone, another one will be sought."""
        self._move(LOST)

    def _finish(self, error=None):
        """No transport will come any more: receivers get what is queued, then None or `error`."""
        self._move(ENDED)
        self.begin_delivery()
        self.finish(error)

    # ------------------------------------------------------------------ receiving

    cdef int on_frame(self, WSFrame frame) except -1:
        self._gathering = not frame.last_in_buffer
        if self._deaf:
            return 0
        try:
            self._receive(frame)
            if not self._gathering:
                self.hand_over()
        except BaseException as error:
            # What is gathered, by whichever connection, leaves even if this here fails once more.
            self._hub.reading = self._gathering = False
            self._hub.begin_turn()
            if not isinstance(error, Exception):               # the loop is being torn down
                raise
            self._on_error(error)
            self._refuse(1011, "internal error")
        return 0

    cdef int on_fault(self, int code, str reason) except -1:
        """picows cannot read on. The frame before the fault may be delivered after this call, so fail a moment later."""
        self._transport.is_close_frame_sent = True             # keeps picows from sending its own
        self._hear_no_more()
        if self._deaf:                                         # nothing it reads matters any more
            return 0
        if code == 1009:                                       # picows says "..., 70000 > 65536"
            self._oversize = int(re.search(r"(\d+) > \d+$", reason)[1])
            reason = f"message over {self._max_message_size} bytes"
        reason = reason.partition(":")[0]                      # what follows is the peer's own bytes
        self._loop.call_soon(self._refuse_fault, self._link, code, reason)
        return 0

    def _refuse_fault(self, link, int code, str reason):
        if self._link is link:
            self._refuse(code, reason)

    cdef int _receive(self, WSFrame frame) except -1:
        cdef int opcode = frame.msg_type
        cdef const char* p = frame.payload_ptr
        cdef Py_ssize_t n = frame.payload_size
        cdef bint continuing, first
        cdef bytes plain
        if opcode >= K_CLOSE:
            if frame.rsv1 or frame.rsv2 or frame.rsv3:         # RFC 6455 §5.2
                return self._refuse(1002, "reserved bits set on a control frame")
            self.hand_over()                                   # answers to what came before it leave before its own
            return self._receive_control(opcode, p, n)
        continuing = self._stream_kind != 0 or (self._assembler is not None and self._assembler.active())
        if unlikely(frame.rsv1 or frame.rsv2 or frame.rsv3):
            if check_data_frame(opcode, frame.rsv1, frame.rsv2, frame.rsv3, self._codec is not None, continuing):
                return self._refuse(1002, "reserved bits set that no extension has given a meaning")
        if frame.rsv1:
            self._inflating = True
        if not self._inflating:
            return self._receive_data(opcode, frame.fin, p, n, None)
        first = opcode != K_CONTINUATION
        try:
            plain = self._codec.decompress(p, n, first, frame.fin, self._room())
        except OutputLimit as error:
            self._inflating = False
            self._oversize = error.size
            return self._refuse_with(1009, f"message over {self._max_message_size} bytes", error)
        except CorruptData as error:
            self._inflating = False
            return self._refuse_with(1007, "message does not inflate", error)
        if frame.fin:
            self._inflating = False
        self._counters.decompression_bytes_in += n
        self._counters.decompression_bytes_out += PyBytes_GET_SIZE(plain)
        return self._receive_data(opcode, frame.fin, PyBytes_AS_STRING(plain), PyBytes_GET_SIZE(plain), plain)

    def _refuse_with(self, int code, str reason, error):
        self._failure = error
        self._refuse(code, reason)
        return 0

    cdef int _receive_data(self, int opcode, bint fin, const char* p, Py_ssize_t n, bytes owner) except -1:
        """Take one data frame; `owner` is its payload where that is an object already."""
        cdef Assembler assembler = self._assembler
        cdef object data
        cdef int verdict
        if self._stream != WHOLE and (self._stream_kind or assembler is None or not assembler.active()):
            return self._receive_stream(opcode, fin, p, n)
        if likely(fin and opcode != K_CONTINUATION and (assembler is None or not assembler.active())):
            if n > self._max_message_size:                     # picows lets frames pass that may be compressed
                self._oversize = n
                return self._refuse_verdict(V_TOO_LARGE)
            if opcode == K_TEXT:
                try:
                    data = PyUnicode_DecodeUTF8(p, n, NULL)
                except UnicodeDecodeError:                     # RFC 6455 §8.1
                    return self._refuse(1007, "text is not UTF-8")
            else:
                data = PyBytes_FromStringAndSize(p, n) if owner is None else owner
            return self._admit(new_message(opcode, data), n)
        if assembler is None:
            assembler = self._assembler = Assembler(self._max_message_size, self._max_fragments)
        verdict = assembler.feed(opcode, fin, p, n)
        if verdict == V_MORE:
            return 0
        if verdict == V_MESSAGE:
            opcode = assembler.kind
            if self._stream == PARTS:
                self._stream = WHOLE           # it was half received when the stream was asked for
            n = assembler.size
            return self._admit(new_message(opcode, assembler.take()), n)
        self._oversize = assembler.size + n
        assembler.reset()
        return self._refuse_verdict(verdict)

    def _refuse_verdict(self, int verdict):
        """Fail the connection for what the reassembly found (RFC 6455 §5.4, §8.1; our limits)."""
        if verdict == V_UNEXPECTED_CONTINUATION:
            self._refuse(1002, "continuation frame without a message to continue")
        elif verdict == V_EXPECTED_CONTINUATION:
            self._refuse(1002, "new message inside an unfinished one")
        elif verdict == V_BAD_UTF8:
            self._refuse(1007, "text is not UTF-8")
        elif verdict == V_TOO_LARGE:
            self._refuse(1009, f"message over {self._max_message_size} bytes")
        else:
            self._refuse(1008, f"message in more than {self._max_fragments} fragments")
        return 0

    cdef Py_ssize_t _room(self) noexcept:
        """Bytes that the message being received may still grow by."""
        if self._stream_kind:
            return self._max_message_size - self._streamed
        if self._assembler is not None and self._assembler.active():
            return self._max_message_size - self._assembler.size
        return self._max_message_size

    cdef int _receive_stream(self, int opcode, bint fin, const char* p, Py_ssize_t n) except -1:
        """Deliver one frame of a message as a part; its order, size and UTF-8 are checked as for a whole one."""
        cdef Part part
        cdef object data
        if opcode == K_CONTINUATION:
            if self._stream_kind == 0:
                return self._refuse_verdict(V_UNEXPECTED_CONTINUATION)
        elif self._stream_kind:
            return self._refuse_verdict(V_EXPECTED_CONTINUATION)
        else:
            self._stream_kind = opcode
            self._streamed = self._stream_frames = 0
            self._stream_decoder = codecs.getincrementaldecoder("utf-8")() if opcode == K_TEXT else None
        if n > self._max_message_size - self._streamed:
            self._oversize = self._streamed + n
            return self._refuse_verdict(V_TOO_LARGE)
        if self._stream_frames >= self._max_fragments:
            return self._refuse_verdict(V_TOO_MANY_FRAGMENTS)
        self._streamed += n
        self._stream_frames += 1
        data = PyBytes_FromStringAndSize(p, n)
        if self._stream_decoder is not None:
            try:
                data = self._stream_decoder.decode(data, fin)
            except UnicodeDecodeError:
                return self._refuse_verdict(V_BAD_UTF8)
        if self._gate is not None:
            self._admit_part(opcode != K_CONTINUATION, n)
            if self._deaf:
                return 0
        if fin:
            self._stream_kind = 0
            self._count_received(self._streamed)
        if self._stream == PARTS:
            part = Part.__new__(Part)
            part.data = data
            part.final = fin
            if fin:
                self._stream = WHOLE
            return self._enqueue(part)
        if fin:
            self._end_skip()
        return 0

    cdef void _end_skip(self) noexcept:
        if self._stream == SKIP:
            self._stream = WHOLE
        elif self._stream == SKIP_THEN_PARTS:
            self._stream = PARTS

    cdef void _count_received(self, Py_ssize_t n) noexcept:
        self.messages_received += 1
        self.bytes_received += n
        self._counters.messages_received += 1
        self._counters.bytes_received += n

    cdef int _admit(self, Message message, Py_ssize_t n) except -1:
        """Pass a message of `n` payload bytes on to the application, if the rate limit lets it."""
        cdef int64_t wait, now
        cdef int action
        self._count_received(n)
        if likely(self._gate is None):
            return self._deliver(message)
        if self._held is None or self._held.size == 0:
            now = monotonic_ns()
            wait = self._gate.admit(n, now)
            if wait == 0:
                return self._deliver(message)
            action = self._gate_action if self._gate.own_wait_ns(n, now) else self._shared_action
            if action == DROP:
                self._counters.rate_limit_drops += 1
                return 0
            if action == CLOSE or wait < 0:                    # below 0: larger than the burst, no wait helps
                return self._refuse(1008, "rate limit exceeded")
            if self._state == OPEN:
                if self._held is None:
                    self._held = Ring()
                self._pause(OVER_RATE)
                self._wait_for_rate(self._gate.reserve(n, now))
        if self._state == OPEN:                                # else reading goes on, up to the peer's close frame
            self._held.push(message)
        return 0

    cdef int _admit_part(self, bint first, Py_ssize_t n) except -1:
        """Charge `n` bytes of a message that is received in parts; with the first part, drop or refuse the message.

        What has begun goes on: who is slowed pays for it before more is read.
        """
        cdef int64_t wait, now = monotonic_ns()
        cdef int action = SLOW
        if not first:
            if self._stream == PARTS:
                self._overdraw(self._gate.reserve_bytes(n, now))
            return 0
        wait = self._gate.wait_ns(n, now)
        if wait:
            action = self._gate_action if self._gate.own_wait_ns(n, now) else self._shared_action
        if action == DROP:
            self._counters.rate_limit_drops += 1
            if self._stream == PARTS:
                self._stream = SKIP_THEN_PARTS
            return 0
        if action == CLOSE or wait < 0:
            return self._refuse(1008, "rate limit exceeded")
        return self._overdraw(self._gate.reserve(n, now))

    cdef bint _admit_ping(self) except -1:
        """Is this ping, an operation, to be answered?"""
        cdef int64_t now = monotonic_ns()
        cdef int action
        if self._gate.admit_operations(1, now) == 0:
            return True
        action = self._gate_action if self._gate.own_operations_wait_ns(1, now) else self._shared_action
        if action == CLOSE:
            self._refuse(1008, "rate limit exceeded")
        if action != SLOW:
            return False
        self._overdraw(self._gate.reserve_operations(1, now))
        return True

    cdef int _overdraw(self, int64_t ns) except -1:
        """What was taken will be there in `ns`: read nothing until then."""
        if ns > 0 and self._state == OPEN and not self._read_pauses & OVERDRAWN:
            self._pause(OVERDRAWN)
            self._loop.call_later(ns * 1e-9, self._repay, self._link)
        return 0

    def _repay(self, link):
        cdef int64_t wait
        if link is self._link:
            wait = self._gate.wait_ns(0, monotonic_ns())       # more may have been taken meanwhile
            if wait > 0:
                self._loop.call_later(wait * 1e-9, self._repay, link)
            else:
                self._resume(OVERDRAWN)

    cdef int _wait_for_rate(self, int64_t ns) except -1:
        self._loop.call_later(ns * 1e-9, self._release_held_in_time, self._link)
        return 0

    def _release_held_in_time(self, link):
        """Deliver the oldest message that the rate limit held back, whose turn it is, and what the limit then allows.

        The tokens of the oldest are reserved while it waits: where connections share a limit, none overtakes another.
        """
        cdef int64_t wait = 0
        if link is not self._link:
            return                                             # of a transport that is gone; all was delivered then
        self.begin_delivery()
        while self._held.size and wait == 0:
            try:
                self._deliver(self._held.pop())
            except Exception as error:
                self._on_error(error)
                self._refuse(1011, "internal error")
            if self._held is not None and self._held.size:
                wait = self._gate.reserve(len(self._held.peek()), monotonic_ns())
        if wait < 0:
            self._held.clear()
            self._refuse(1008, "rate limit exceeded")
        elif wait:
            self._wait_for_rate(wait)
        else:
            self._resume(OVER_RATE)

    def _release_held(self):
        """The transport is gone: what was received is delivered, limit or not."""
        while self._held is not None and self._held.size:
            try:
                self._deliver(self._held.pop())
            except Exception as error:
                self._on_error(error)

    cdef int _deliver(self, Message message) except -1:
        if self._on_message is not None:
            self._on_message(self, message)
            return 0
        return self._enqueue(message)

    cdef int _enqueue(self, object item) except -1:
        cdef Py_ssize_t n
        if self._discarding:
            return 0
        if type(item) is Message:
            n = weight(<Message>item)
        else:
            n = len((<Part>item).data)
        self._queued_bytes += n
        self._queue.push(item)
        if (not self._gathering or self._queue.size >= self._gather_limit
                or self._queued_bytes >= self._gather_byte_limit):
            self.hand_over()
        if self._queue.size >= self._queue_limit or self._queued_bytes >= self._queue_byte_limit:
            if self._state == OPEN:
                self._pause(QUEUE_FULL)
            else:
                self._discarding = True                        # reading goes on, up to the peer's close frame
        return 0

    cdef int taken(self, object item) except -1:
        if type(item) is Message:
            self._queued_bytes -= weight(<Message>item)
        else:
            self._queued_bytes -= len((<Part>item).data)
        if self._read_pauses & QUEUE_FULL and self._queue.size <= self._queue_limit // 2 \
                and self._queued_bytes <= self._queue_byte_limit // 2:
            self._resume(QUEUE_FULL)
        return 0

    cdef int _pause(self, int reason) except -1:
        if self._read_pauses == 0 and self._io is not None and self._state == OPEN:
            self._io.pause_reading()
        self._read_pauses |= reason
        return 0

    cdef int _resume(self, int reason) except -1:
        if self._read_pauses & reason:
            self._read_pauses &= ~reason
            if self._read_pauses == 0 and self._io is not None:
                if self._hub.reading:
                    # A transport may deliver at once what it holds; not into the read that is being delivered.
                    self._loop.call_soon(self._resume_now)
                else:
                    self._resume_now()
        return 0

    def _resume_now(self):
        if self._read_pauses == 0 and self._io is not None and not self._io.is_closing():
            self._io.resume_reading()

    # ------------------------------------------------------------------ control frames and closing

    cdef int _receive_control(self, int opcode, const char* p, Py_ssize_t n) except -1:
        if opcode == K_CLOSE:
            return self._receive_close(p, n)
        if opcode == K_PONG:
            self._on_pong(PyBytes_FromStringAndSize(p, n))
        elif self._gate is None or self._admit_ping():
            # RFC 6455 §5.5.3: it is enough to answer the most recent ping. So one pong waits at most.
            self._pong_due = PyBytes_FromStringAndSize(p, n)
            self._send_pong_due()
        return 0

    def _send_pong_due(self):
        if self._pong_due is not None and not self._blocked and not self._deaf:
            payload, self._pong_due = self._pong_due, None
            self._write_control(K_PONG, payload)

    cdef int _receive_close(self, const char* p, Py_ssize_t n) except -1:
        cdef CloseFrame close = read_close(<const uint8_t*>p, n)
        if close.fault:
            return self._refuse(close.fault, "malformed close frame")
        self._deaf = True                                      # RFC 6455 §5.5.1: no more data follows
        self._received_code = close.code
        if self._failure is None:
            self._close_text = close.reason
        if self._sent_code == 0:                               # RFC 6455 §5.5.1: the answer echoes the code; and the
            self._send_close(close.code, PyBytes_FromStringAndSize(p, n))    # reason, as browsers and others do
        return self._end_transport()

    cdef int _refuse(self, int code, str reason) except -1:
        """Fail the connection (RFC 6455 §7.1.7): say why, then hang up."""
        self.hand_over()                                       # what was good may still be answered
        if self._state != OPEN:
            if self._state == CLOSING and not self._deaf:      # our close frame is out already
                self._deaf = True
                self._hear_no_more()
                self._io.abort()
            return 0
        self._deaf = True
        self._counters.receive_errors += 1
        fault = self._fault(code, reason)
        if self._failure is not None:
            fault.__cause__ = self._failure
        self._failure = fault
        self._close_text = reason
        self._send_close(code, code.to_bytes(2, "big") + reason.encode()[:MAX_REASON])
        return self._end_transport()

    cdef int _send_close(self, int code, bytes body) except -1:
        self._sent_code = code
        self._move(CLOSE_BEGUN)
        return self._write_control(K_CLOSE, body)

    def _begin_close(self, int code, bytes reason):
        """Send our close frame and wait for the peer's; the transport is aborted when that takes too long."""
        self._send_close(code, code.to_bytes(2, "big") + reason if code != 1005 else b"")
        self._close_text = reason.decode()
        self._read_pauses = 0                                  # the answer stands behind what was not read yet
        self._resume_now()
        self._watch(self._close_timeout)

    cdef int _end_transport(self) except -1:
        """All that is to be said has been: the server hangs up first (RFC 6455 §7.1.1), the client waits for it."""
        self.flush()
        if self._io is None or self._io.is_closing():
            return 0
        if self._failure is not None:
            self._hear_no_more()
            if self._fd >= 0 and self._io.can_write_eof():
                self._io.write_eof()
            else:
                self._io.close()
        elif not self._masking:
            self._io.close()
        self._read_pauses = 0
        self._resume_now()
        return self._watch(self._close_timeout)

    cdef int _hear_no_more(self) except -1:
        """Keep what still comes from picows, which would keep an exception that nobody asks for."""
        self._io.set_protocol(Drain(self._link, self._transport))
        return 0

    cdef int _watch(self, double seconds) except -1:
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._abort)
        return 0

    def _abort(self):
        """Drop the transport now, whatever it still holds."""
        if self._io is not None:
            self._io.abort()

    cdef int on_blocked(self, bint blocked) except -1:
        self._blocked = blocked = blocked or self._lost
        self._update_sendable()
        if not blocked:
            self.begin_delivery()
            self._send_pong_due()
            self._drain_outbox()
            if not self._blocked:
                self._on_writable()
        return 0

    cdef int on_broken(self, bytes unwritten) except -1:
        """What came before the loss can still be read, then the transport ends. One that does not is aborted."""
        Sender.on_broken(self, unwritten)
        return self._watch(self._close_timeout)

    # ------------------------------------------------------------------ for Peer: what it may see

    @property
    def _state_now(self):
        return State(self._state)

    @property
    def _is_open(self):
        return self._state == OPEN

    @property
    def _is_blocked(self):
        return self._blocked

    @property
    def _is_fragmenting(self):
        return self._fragmenting

    @property
    def _is_reading_paused(self):
        return self._read_pauses != 0

    @property
    def _outbox_size(self):
        return self._outbox.size

    @property
    def _transport_now(self):
        """asyncio's transport, or None."""
        return self._io

    @property
    def _codec_now(self):
        return self._codec

    def _release_codec(self):
        """Give back the memory of compression that an idle connection need not keep."""
        if self._codec is not None:
            self._codec.release_idle()

    def _has_partial_message(self):
        """Is a message half received?"""
        return self._stream_kind != 0 or (self._assembler is not None and self._assembler.active())

    def recv(self):
        """Return an awaitable for the next message; see `fabric._connection.base.Peer`. Gives up a stream that is not at its end."""
        cdef Recv recv = Recv.__new__(Recv)
        recv._inbox = self
        if unlikely(self._streaming):
            self._give_up_stream()
        return recv

    def __anext__(self):
        cdef Recv recv = Recv.__new__(Recv)
        recv._inbox = self
        recv._iterating = True
        if unlikely(self._streaming):
            self._give_up_stream()
        return recv

    def _recv_part(self):
        """Return an awaitable for the next item of a stream: a Part, or a whole Message that was there before."""
        cdef Recv recv = Recv.__new__(Recv)
        recv._inbox = self
        return recv

    def _start_stream(self):
        """Deliver the next message in parts, unless one is queued already; return the number of this stream."""
        self._give_up_stream()
        if self._queue.size == 0 and self._end is None:
            self._stream = SKIP_THEN_PARTS if self._stream == SKIP else PARTS
        self._streaming = True
        self._stream_number += 1
        return self._stream_number

    def _is_stream(self, int number):
        """Is this still the stream that parts are for?"""
        return self._streaming and number == self._stream_number

    def _stop_stream(self, int number):
        """No more parts are wanted, if they are those of this stream."""
        if self._is_stream(number):
            self._give_up_stream()

    cdef int _give_up_stream(self) except -1:
        """Skip what is left of the message that is received in parts, if there is one."""
        if self._waiter is not None:
            return 0                           # of another task, which is told that it is not alone
        self._streaming = False
        if self._stream == PARTS:
            self._stream = SKIP if self._stream_kind else WHOLE
        elif self._stream == SKIP_THEN_PARTS:
            self._stream = SKIP
        for _ in range(self._queue.size):
            item = self._queue.pop()
            if type(item) is Part:
                self.taken(item)
            else:
                self._queue.push(item)
        return 0

    # ------------------------------------------------------------------ hooks, overridden in Python

    def _opened(self, request, response):
        """The handshake is complete."""

    def _on_lost(self):
        """The transport is gone: finish, or find another."""
        self._finish()

    def _on_pong(self, bytes payload):
        """A pong arrived."""

    def _on_error(self, error):
        """The application's callback raised; the connection is failed with 1011."""

    def _fault(self, int code, str reason):
        """The exception for failing the connection with `code`."""
        return RuntimeError(f"{code} {reason}")
