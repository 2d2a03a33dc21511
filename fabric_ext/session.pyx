"""One transport's life as a WebSocket: bytes in, messages up; messages down, frames out; and the close handshake.

A session begins when the opening handshake is done and ends with its transport. It owns what belongs to one transport:
descriptor, gather buffer, decoder, codec, the message being joined, pings, and how the close handshake stands. It is
the protocol that the event loop's transport calls. What outlives the transport is its user's: the connection, to which
it reports (`SessionUser`). A connection that reconnects makes a new session.
"""

import asyncio

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cython cimport likely, unlikely
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from fabric_ext.assembler cimport Assembler, new_assembler
from fabric_ext.awaitable cimport reraise, take_reference
from fabric_ext.closing cimport CloseHandshake, peer_is_done, unsent_of
from fabric_ext.clock cimport monotonic_ns
from fabric_ext.deflate cimport Codec
from fabric_ext.frames cimport (BAD_COMPRESSION, BAD_UTF8, CALLBACK_FAILED, D_CONTROL, D_DATA, D_MESSAGE, D_MORE,
                                RATE_EXCEEDED, READ_FAILED, TOO_LARGE, TOO_MANY_FRAGMENTS, Decoder)
from fabric_ext.message cimport K_CLOSE, K_CONTINUATION, K_PONG, K_TEXT, Message, new_message
from fabric_ext.protocol cimport MAX_REASON, CloseFrame, fault_code, fault_text, read_close
from fabric_ext.read_buffer cimport Block, read_buffer_of
from fabric_ext.sender cimport Sender, message_of
from fabric_ext.session_user cimport SessionUser, new_part
from fabric_ext.throttle cimport ADMIT, CLOSE, DROP, Throttle
from fabric_ext.transport cimport Transport
from fabric_ext.writer cimport loop_writer_of

from fabric_ext.deflate import CorruptData, OutputLimit

cdef extern from "Python.h":
    PyObject* PyUnicode_DecodeUTF8(const char* p, Py_ssize_t n, const char* errors) noexcept

# For a caller that looks for -1 itself, and finds the exception set: an `except` clause costs as much as a small frame.
ctypedef int (*Unchecked)(Session, Block, Py_ssize_t) noexcept

cdef enum:
    LOOKS = 10                   # at what is unsent, in each `close_timeout`
    DONE_CHECK = 1               # seconds between two looks whether a peer that is not read from has left
    TLS_OVERHEAD = 64            # bytes of a record beside its payload, at most


cdef object raised():
    """The exception that is set in C, caught."""
    try:
        reraise()
    except BaseException as error:
        return error


def stop_loop(loop, error):
    """Have `error`, KeyboardInterrupt or SystemExit, end `loop.run_forever()`.

    A transport that calls a protocol may keep what that raises, as uvloop's do. A callback of the loop is not kept from it.
    """
    loop.call_soon(_raise, error)


def _raise(error):
    raise error


cdef class Session(Sender):
    """The asyncio protocol of one WebSocket transport.

    Args:
        user: the connection.
        io: an asyncio transport on which the opening handshake is done.
        masking: this is a client.
        close_timeout: seconds for which the close handshake may make no progress.
        fragment_size: payload bytes per outbound frame; 0 never splits.
        cork: False writes every message at once.
        max_frame_size: payload bytes of a frame received; 0 for as many as a message may have.
        frames_apart: a message in several frames is delivered frame by frame, each a Part.
        frame_log: told of the bytes that are read and written; None: there is none.
    """

    def __cinit__(self, SessionUser user not None, io not None, loop not None, *, bint masking,
                  Py_ssize_t max_message_size, Py_ssize_t max_fragments, Py_ssize_t fragment_size,
                  double close_timeout, bint cork=True, Codec codec=None, Throttle throttle=None,
                  Py_ssize_t max_frame_size=0, bint frames_apart=False, frame_log=None):
        self._user = user
        self._loop = loop
        self._transport = Transport(io, loop)
        self._loop_writer = loop_writer_of(loop)
        self._read_buffer = read_buffer_of(loop)
        self._counters = user._counters
        self._is_client = masking
        self._uncorked = not cork
        self._fragment_size = fragment_size
        self.close_timeout = close_timeout
        self._codec = codec
        self._throttle = throttle
        self._frame_log = frame_log
        self._decoder = Decoder(masked=not masking, max_message_size=max_message_size, max_fragments=max_fragments,
                                compressing=codec is not None, max_frame_size=max_frame_size)
        self._frames_apart = frames_apart
        self.inbound_seen = True

    def __reduce__(self):
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object")

    def open(self, bint in_parts=False):
        """Begin to read. `in_parts`: the first message is to be delivered in parts."""
        self._delivery = PARTS if in_parts else WHOLE
        if self._throttle is not None:
            self._throttle.start(self, self._loop, self._counters)
        self._transport.io.set_protocol(self)

    def feed_early(self, bytes data not None):
        """Read `data`, which came behind the opening handshake, before what the transport brings from now on."""
        self._early = data
        # Two turns of the loop later: the one in between begins the application's task. It can then answer each message
        # before the next frame is looked at, which may be at fault.
        self._loop.call_soon(self._loop.call_soon, self._read_early)

    def _read_early(self):
        """Read what was kept, as far as nothing speaks against reading."""
        cdef bytes data
        cdef Py_ssize_t n
        cdef Block block
        while self._early is not None and self._read_pauses == 0:
            data = self._early
            block = self._read_buffer.block()
            n = min(block.size, PyBytes_GET_SIZE(data))
            memcpy(block.data, PyBytes_AS_STRING(data), n)
            self._early = data[n:] or None         # first: a handler that lets the loop run may want to read on
            self.read(block, n)

    # ------------------------------------------------------------------ called by the transport

    def connection_made(self, transport):
        """The handshake had the transport before: see `open`."""

    def get_buffer(self, hint, /):
        self.inbound_seen = True                   # bytes are a sign of life before they are a frame
        self._block = self._read_buffer.block()
        return self._block.view

    def buffer_updated(self, Py_ssize_t n, /):
        cdef Block block = self._block
        if block is None or not 0 <= n <= block.size:
            raise RuntimeError("buffer_updated() without get_buffer()")
        self._block = None
        if unlikely(self._early is not None):
            self._early += PyBytes_FromStringAndSize(block.data, n)
            self._read_early()
        else:
            self.read(block, n)

    def eof_received(self):
        return False                               # the transport closes itself, and reports it

    def pause_writing(self):
        if self._transport is not None:
            self._transport.holds = True
            if self._user is not None:
                self._user.on_blocked()

    def resume_writing(self):
        """The transport is through. It calls from its own midst, where a write could confuse it: go on behind that."""
        if not self._resuming:
            self._loop.call_soon(self._write_on)
            self._resuming = True

    def _write_on(self):
        """Write what has waited for the transport."""
        cdef SessionUser user = self._user         # held, as in read()
        self._resuming = False
        if user is None or self._transport.lost or self._transport.closed:
            return
        self._transport.holds = self._transport.io.get_write_buffer_size() != 0
        if self._transport.holds:
            return                                 # again: it will call again
        self._held = None
        user.begin_delivery()
        self.flush()
        self.send_pong()
        self.after_writing()
        if not self._transport.holds:
            user.on_writable()

    def connection_lost(self, error):
        cdef SessionUser user = self._user
        cdef list held = [], unsent
        if user is None:
            return
        if self._early is not None:
            self._peer_is_done = self._transport.holds = True      # its descriptor may be another's already
            self._read_pauses = 0
            user.on_blocked()
            try:
                self._read_early()
            finally:
                self._early = None                 # what a rate limit holds up still was to be inflated
                self.connection_lost(error)
            return
        self.lost_error = error
        for timer in (self._timer, self._end_check):
            if timer is not None:
                timer.cancel()
        self._timer = self._end_check = None
        if self._due:
            self.take_due()
        self._is_shut = True
        self.cut_off = self.take_held(self.not_taken())
        unsent = self.take_unsent()
        self._transport.detach()
        if self._throttle is not None:
            held = self._throttle.stop()
        self._codec = None
        user.begin_delivery()
        try:
            if unsent:
                user.on_unsent(unsent)
            for message in held:                   # what was received is delivered, limit or not
                self.deliver_held(message)
        finally:
            self._discarding = True
            try:
                user.on_ended()
            finally:
                self._user = None

    # ------------------------------------------------------------------ receiving

    cdef int read(self, Block block, Py_ssize_t n) except -1:
        """Deliver the frames of the `n` bytes that were read into `block`."""
        cdef SessionUser user = self._user         # held: a handler that lets the loop run may see the transport go
        cdef int64_t around = self._loop_writer.read_ns
        if self._discarding or user is None:
            return 0
        block.taken = True
        self._loop_writer.reading += 1
        user.begin_delivery()
        self._loop_writer.read_ns = self._counters.last_activity_ns = monotonic_ns()
        try:
            if unlikely((<Unchecked>deliver)(self, block, n) < 0):
                self.on_raised()
        finally:
            block.taken = False
            self.batching = False
            self._loop_writer.read_ns = around
            self._loop_writer.end_read()
        return self._read_buffer.note(block, n)

    cdef int on_raised(self) except -1:
        try:
            reraise()
        except BaseException as error:
            self.on_error(error)
        return 0

    cdef int receive_behind(self, Block block, Py_ssize_t n) except -1:
        """This read comes inside the delivery of another one: deliver the rest of that first.

        Both stand in one piece then, so that a read which comes inside the delivery of that rest finds this one before it.
        """
        cdef Decoder decoder = self._decoder
        cdef Block whole = Block(decoder.left + n)
        memcpy(whole.data, decoder.at, decoder.left)
        memcpy(whole.data + decoder.left, block.data, n)
        decoder.feed(<unsigned char*>whole.data, decoder.left + n)
        try:
            return self.receive_frames()
        finally:
            decoder.left = 0                       # where it ended early, `whole` goes all the same

    cdef inline int receive_frames(self) except -1:
        cdef Decoder decoder = self._decoder
        cdef int found
        while True:
            found = decoder.next()
            if found == D_MORE:
                break
            self.batching = decoder.left != 0
            if likely(found == D_MESSAGE and self._delivery == WHOLE):
                self.receive_whole(<const char*>decoder.data, decoder.size, None)
            elif found <= D_DATA:
                self.receive_data()
            elif found == D_CONTROL:
                self.receive_control()
            else:
                self.fail(decoder.fault, None)
            if self._discarding or self._user is None:
                return 0
        self.batching = False
        return self._user.hand_over()

    cdef int receive_data(self) except -1:
        """Take a data frame, or a part of one, that is not a message to be delivered as it is."""
        cdef Decoder decoder = self._decoder
        cdef const char* p = <const char*>decoder.data
        cdef Py_ssize_t n = decoder.size
        cdef Py_ssize_t limit
        cdef bytes plain
        cdef Codec codec = self._codec             # held: a finalizer may let the loop run, and the session end
        cdef bint first = decoder.begins and decoder.opcode != K_CONTINUATION, last = decoder.ends and decoder.fin
        if not decoder.compressed:
            return self.receive_piece(p, n, first, last, None)
        if first:
            self._message_size = 0
        if decoder.begins:
            self._frame_size = 0
        limit = min(decoder.max_message_size - self._message_size, decoder.max_frame_size - self._frame_size)
        try:
            plain = codec.decompress(p, n, first, last, limit)
        except OutputLimit as error:
            return self.fail(TOO_LARGE, error)
        except CorruptData as error:
            return self.fail(BAD_COMPRESSION, error)
        if self._user is None:
            return 0
        self._counters.decompression_bytes_in += n
        self._counters.decompression_bytes_out += PyBytes_GET_SIZE(plain)
        self._frame_size += PyBytes_GET_SIZE(plain)
        return self.receive_piece(PyBytes_AS_STRING(plain), PyBytes_GET_SIZE(plain), first, last, plain)

    cdef inline int receive_whole(self, const char* p, Py_ssize_t n, bytes owner) except -1:
        """Take a message that is all there; `owner` is its payload where that is an object already."""
        cdef PyObject* text
        if self._decoder.opcode == K_TEXT:
            text = PyUnicode_DecodeUTF8(p, n, NULL)
            if unlikely(text == NULL):             # RFC 6455 §8.1
                return self.fail(BAD_UTF8, raised())
            return self.admit(take_reference(text), K_TEXT, n)
        return self.admit(PyBytes_FromStringAndSize(p, n) if owner is None else owner, self._decoder.opcode, n)

    cdef int receive_piece(self, const char* p, Py_ssize_t n, bint first, bint last, bytes owner) except -1:
        """Take the next piece of a message."""
        cdef Assembler assembler
        cdef Py_ssize_t expected = 0
        cdef object data
        if first:
            self._message_size = 0
            self._in_parts = self._delivery != WHOLE or (self._frames_apart and not self._decoder.fin)
            if last and not self._in_parts:
                return self.receive_whole(p, n, owner)
            self._assembler = new_assembler(self._decoder.max_message_size, self._decoder.opcode)
        assembler = self._assembler
        self._message_size += n
        if self._in_parts:
            return self.receive_part(p, n, first, last)
        if self._decoder.fin and not self._decoder.compressed:
            expected = self._decoder.sequence.size
        if not assembler.add(p, n, last, expected):
            return self.fail(BAD_UTF8, None)
        if not last:
            return 0
        self._assembler = None
        kind = assembler.kind
        data = assembler.whole()
        return self.admit(data, kind, self._message_size)

    cdef int receive_part(self, const char* p, Py_ssize_t n, bint first, bint last) except -1:
        """Deliver a piece as a part of its message, or let it pass if the message is not wanted any more."""
        cdef Assembler assembler = self._assembler
        cdef bint wanted = self._delivery == PARTS or self._frames_apart
        cdef int admission
        cdef object data
        if not (assembler.add(p, n, last, 0) if wanted else assembler.check(p, n, last)):
            return self.fail(BAD_UTF8, None)
        if self._throttle is not None and (first or self._delivery == PARTS):
            admission = self._throttle.admit_part(first, n)
            if admission == CLOSE:
                return self.fail(RATE_EXCEEDED, None)
            if admission == DROP and self._delivery == PARTS:
                self._delivery = SKIP_THEN_PARTS
                wanted = self._frames_apart
        if last:
            self._user.messages_received += 1
            self._user.bytes_received += self._message_size
            self._counters.messages_received += 1
            self._counters.bytes_received += self._message_size
            self._assembler = None
        if wanted:
            if not self._decoder.ends and (n == 0 or self._frames_apart):
                return 0                           # only a header yet, or a frame that is kept until it is whole
            data = assembler.whole() if last else assembler.part()
            if last:
                self._delivery = WHOLE
            return self._user.deliver_part(new_part(data, last, False))
        if last:
            self._delivery = WHOLE if self._delivery == SKIP else PARTS
        return 0

    cdef int deliver_in_parts(self) except -1:
        """Deliver the next message in parts, or this one: what has come of it is the first."""
        cdef Assembler assembler = self._assembler
        cdef int admission = ADMIT
        cdef object part
        self._delivery = SKIP_THEN_PARTS if self._delivery == SKIP else PARTS
        if assembler is None or self._in_parts or self._discarding:
            return 0
        self._in_parts = True
        if self._throttle is not None:
            admission = self._throttle.admit_part(True, self._message_size)
        if admission == CLOSE:
            return self.fail(RATE_EXCEEDED, None)
        part = assembler.part()
        if admission == DROP:
            self._delivery = SKIP_THEN_PARTS
        elif part:
            self._user.deliver_part(new_part(part, False, False))
        return 0

    cdef inline int admit(self, object data, int kind, Py_ssize_t n) except -1:
        """Pass a message of `n` payload bytes on to the application, if the rate limit lets it."""
        cdef Message message = new_message(kind, data)
        cdef int admission
        message.received_ns = self._loop_writer.read_ns
        self._user.messages_received += 1
        self._user.bytes_received += n
        self._counters.messages_received += 1
        self._counters.bytes_received += n
        if unlikely(self._throttle is not None):
            admission = self._throttle.admit(message, n, self.closing is not None)
            if admission == CLOSE:
                return self.fail(RATE_EXCEEDED, None)
            if admission != ADMIT:
                return 0
        return self.pass_on(message)

    cdef inline int pass_on(self, Message message) except -1:
        self._in_user = True
        self._user.deliver(message)
        self._in_user = False
        return 0

    def deliver_held(self, Message message not None):
        """Deliver a message that was held back, by the rate limit or for another receiver."""
        cdef SessionUser user = self._user         # held, as in read()
        if user is None:
            return
        user.begin_delivery()
        try:
            self.pass_on(message)
            user.hand_over()
        except BaseException as error:
            self.on_error(error)

    cdef int on_error(self, object error) except -1:
        """Something raised while a read was being delivered: the connection ends, and says so.

        KeyboardInterrupt and SystemExit go on to the event loop, which stops for them.
        """
        cdef bint in_callback = self._in_user
        cdef SessionUser user = self._user
        self._in_user = self.batching = False
        try:
            try:
                self.fail(CALLBACK_FAILED if in_callback else READ_FAILED, error)
            finally:
                if not isinstance(error, (Exception, asyncio.CancelledError, GeneratorExit)):
                    raise error
                if user is not None:
                    user._on_failed(error, in_callback)
        except (KeyboardInterrupt, SystemExit) as stop:
            stop_loop(self._loop, stop)
        return 0

    # ------------------------------------------------------------------ when the socket is not read

    cdef int pause(self, int reason) except -1:
        if self._peer_is_done and (reason == QUEUE_FULL or self._codec is None):
            return 0
        if self._read_pauses == 0 and self.closing is None and not self._transport.closed:
            self.stop_reading()
        if self._end_check is None:
            self._end_check = self._loop.call_later(DONE_CHECK, self._look_for_end)
        self._read_pauses |= reason
        if self._codec is not None and self._decoder.left and self.closing is None:
            self.keep_rest()
        return 0

    cdef int keep_rest(self) except -1:
        """Keep what is left of this read as it is until reading goes on: it may be a thousand times as much inflated."""
        cdef Decoder decoder = self._decoder
        cdef bytes rest = PyBytes_FromStringAndSize(<const char*>decoder.at, decoder.left)
        self._early = rest if self._early is None else rest + self._early
        decoder.left = 0
        return 0

    cdef int resume(self, int reason) except -1:
        """Read again, if nothing else speaks against it. Where that raises, it is as if it had not been called."""
        if self._read_pauses == reason and not self._transport.closed:
            if self._loop_writer.reading or self._early is not None:
                # A transport may deliver at once what it holds; not into the read that is being delivered.
                self._loop.call_soon(self._read_again)
            else:
                self.start_reading()
        self._read_pauses &= ~reason
        return 0

    cdef int stop_reading(self) except -1:
        cdef bint busy = self._busy
        self._busy = True                          # what a finalizer sends now would change what the loop is changing
        try:
            self._transport.io.pause_reading()
        finally:
            self._busy = busy
        return self._gather_rest()

    cdef int start_reading(self) except -1:
        cdef object io = self._transport.io
        cdef bint busy = self._busy
        if io.is_closing():
            return 0
        self._busy = True
        try:
            if io.is_reading():                    # as it says after an attempt that raised half-way
                io.pause_reading()
            io.resume_reading()
        finally:
            self._busy = busy
        return self._gather_rest()

    cdef int read_to_the_end(self) except -1:
        """Nothing speaks against reading any more."""
        if self._read_pauses:
            self._read_pauses = 0
            if self._early is not None:
                self._loop.call_soon(self._read_again)
            else:
                self._read_again()
        return 0

    def _read_again(self):
        if self._read_pauses == 0 and not self._transport.closed:
            self._read_early()
        if self._read_pauses == 0 and not self._transport.closed:
            self.start_reading()

    def _look_for_end(self):
        """A peer that is not read from may have left: then what it sent is no more than a socket buffer, and is read.

        Inflated it may be much more. So a rate limit goes on to hold it up, and so does a user that counts frames; one
        that counts bytes bounds it itself.
        """
        self._end_check = None
        if not self._read_pauses or self._transport.closed:
            return
        if peer_is_done(self._transport._socket) and not (self._codec is not None and self._frames_apart):
            self._peer_is_done = True
            if self._codec is None:
                self.read_to_the_end()
            else:
                self.resume(QUEUE_FULL)
        else:
            self._end_check = self._loop.call_later(DONE_CHECK, self._look_for_end)

    def pause_for_rate(self):
        self.pause(OVER_RATE)

    def resume_for_rate(self):
        self.resume(OVER_RATE)

    def pause_overdrawn(self):
        self.pause(OVERDRAWN)

    def resume_overdrawn(self):
        self.resume(OVERDRAWN)

    def fail_for_rate(self):
        self.fail(RATE_EXCEEDED, None)

    cdef int on_unsent(self, list messages) except -1:
        """The connection is lost, as the kernel says. The transport will learn it when it reads; if not, it is aborted."""
        if self._user is None:
            return 0
        self._user.on_blocked()
        self._user.on_unsent(messages)
        return self.watch()

    cdef int on_write_failed(self) except -1:
        self._discarding = True
        self._transport.holds = True
        if self._user is not None:
            self._user.on_blocked()
        self.abort()
        return 0

    # ------------------------------------------------------------------ control frames

    cdef int receive_control(self) except -1:
        cdef int opcode = self._decoder.opcode, admission
        # Both before a handler runs: where that lets the loop run, the decoder goes on with another read.
        cdef bytes payload = PyBytes_FromStringAndSize(<const char*>self._decoder.data, self._decoder.size)
        self._user.hand_over()                     # answers to what came before it leave before its own
        if self._discarding or self._user is None:
            return 0
        if opcode == K_CLOSE:
            return self.receive_close(payload)
        if opcode == K_PONG:
            self._user._on_pong(payload)
            return 0
        if self._throttle is not None:
            admission = self._throttle.admit_ping()
            if admission == CLOSE:
                return self.fail(RATE_EXCEEDED, None)
            if admission != ADMIT:
                return 0
        # RFC 6455 §5.5.3: it is enough to answer the most recent ping. So one pong waits at most.
        self._pong_due = payload
        return self.send_pong()

    cdef int send_pong(self) except -1:
        cdef bytes payload = self._pong_due
        if payload is not None and not self._transport.holds and not self._discarding:
            self._pong_due = None
            self.write_control(K_PONG, payload)
        return 0

    # ------------------------------------------------------------------ closing

    def begin_close(self, int code, str reason not None):
        """Begin the close handshake: send our close frame and wait for the peer's."""
        cdef bytes body
        if self.closing is not None:
            self._say_fault()
            return
        body = b"" if code == 1005 else code.to_bytes(2, "big") + reason.encode()
        if not self.begin_handshake("local"):
            return
        self.closing.sent_code = code
        self.closing.reason = self.closing.sent_reason = reason
        self._user.on_closing()
        self.write_control(K_CLOSE, body)
        self.flush()
        if self._transport.closed:
            return
        self.read_to_the_end()                     # the answer stands behind what was not read yet
        self.watch()

    cdef bint begin_handshake(self, str began_by) except -1:
        """The close handshake begins; False if it had, or the session has ended, as a finalizer may have it."""
        cdef CloseHandshake handshake = CloseHandshake()
        if self.closing is not None or self._user is None:
            return False
        handshake.began_by = began_by
        self.closing = handshake
        return True

    cdef int receive_close(self, bytes payload) except -1:
        cdef CloseFrame frame = read_close(<const uint8_t*>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        if frame.fault:
            return self.fail(frame.fault, None)
        self._discarding = True                    # RFC 6455 §5.5.1: no more data follows
        self.begin_handshake("remote")
        if self._user is None:
            return 0
        if not self.closing.fault:
            self.closing.reason = frame.reason
        self.closing.received_code = frame.code
        self.closing.received_reason = frame.reason
        if self.closing.sent_code == 0:
            self.closing.sent_reason = frame.reason
            # RFC 6455 §5.5.1: the answer echoes the code; and the reason, as browsers and others do.
            self.closing.sent_code = frame.code
            self._user.on_closing()
            self.write_control(K_CLOSE, payload)
        return self.end_transport()

    cdef int fail(self, int fault, object cause) except -1:
        """Fail the connection (RFC 6455 §7.1.7): say why, then hang up."""
        cdef Decoder decoder = self._decoder
        cdef int code = fault_code(fault)
        cdef str reason = fault_text(fault)
        cdef object told
        if self._user is None or self._discarding:
            return 0
        if fault == TOO_LARGE:
            reason = reason.format(decoder.max_message_size)
        elif fault == TOO_MANY_FRAGMENTS:
            reason = reason.format(decoder.sequence.max_frames)
        told = self._user._explain(fault, decoder.length, decoder.sequence.size, cause)
        if told is not None:
            code, reason, cause = told
        return self.fail_with(fault, code, reason, cause)

    def fail_connection(self, int code, str reason not None, cause=None):
        """Fail the connection for a reason of the application."""
        self.fail_with(CALLBACK_FAILED, code, reason, cause)

    cdef int fail_with(self, int fault, int code, str reason, object cause) except -1:
        if self._user is None or self._discarding:
            return 0
        self._discarding = True
        if not self.begin_handshake("local"):      # our close frame is out already
            return self._abort_now()
        self._counters.receive_errors += 1
        self.closing.sent_code = code
        self.closing.fault = fault
        self.closing.cause = cause
        if fault == TOO_LARGE:
            self.closing.oversize = getattr(cause, "size", None) or self._decoder.oversize
        self.closing.reason = self.closing.sent_reason = reason
        try:
            self._user.hand_over()                 # what was good may still be answered
        finally:
            if self._user is None:
                pass
            elif (self._loop_writer.by_threads and self._user._items.size and self._timer is None
                    and fault != CALLBACK_FAILED and fault != READ_FAILED):
                # A thread takes it only now. So the rest follows when it waits for more, or has not for too long.
                self.closing.is_put_off = True
                self._timer = self._loop.call_later(self.close_timeout / LOOKS, self._say_fault)
            else:
                self.say_fault()
        return 0

    cdef int say_fault(self) except -1:
        """Send the close frame that tells why the connection has failed, and hang up."""
        self._user.on_closing()
        self.write_control(K_CLOSE, self.closing.sent_code.to_bytes(2, "big") + self.closing.reason.encode()[:MAX_REASON])
        return self.end_transport()

    def _say_fault(self):
        """Go on with failing the connection, which was put off."""
        if self._user is not None and self.closing.is_put_off:
            self.closing.is_put_off = False
            self._timer.cancel()
            self._timer = None
            self.say_fault()
            self.flush()

    cdef int end_transport(self) except -1:
        """All that is to be said has been: the server hangs up first (RFC 6455 §7.1.1), the client waits for it."""
        cdef object io = self._transport.io
        cdef bint all_taken
        if io is None or io.is_closing():
            return 0
        self.hand_over()
        if self.closing.fault:
            # Closing with bytes unread would reset the connection, and could destroy our close frame on its way.
            if not self._transport.is_secure and io.can_write_eof():
                try:
                    io.write_eof()
                except OSError:                    # the peer has gone
                    io.close()
            else:
                io.close()
        elif not self._is_client:
            io.close()
            if not self._transport.is_secure and io.get_write_buffer_size() == 0:
                return self.read_to_the_end()      # it ends with this turn of the loop, whatever the peer does
        elif self._user._is_followed(self):
            all_taken = io.get_write_buffer_size() == 0
            io.close()
            if all_taken and self._transport.is_secure:
                io.abort()                         # TLS would wait for the peer's answer, and the next session with it
        self.read_to_the_end()
        return self.watch()

    cdef int watch(self) except -1:
        """End the transport when the peer neither answers nor takes bytes for `close_timeout`."""
        if self._timer is None and not self._transport.closed:
            self._unsent_bytes = self.unsent()
            self._quiet_looks = 0
            self._timer = self._loop.call_later(self.close_timeout / LOOKS, self._look_at_progress)
        return 0

    def _look_at_progress(self):
        cdef Py_ssize_t left = self.unsent()
        self._quiet_looks = self._quiet_looks + 1 if left >= self._unsent_bytes else 0
        self._unsent_bytes = left
        if self._quiet_looks < LOOKS:
            self._timer = self._loop.call_later(self.close_timeout / LOOKS, self._look_at_progress)
        else:
            self._timer = None
            self.cut_off_bytes = left
            self.abort()

    cdef Py_ssize_t unsent(self) except -1:
        """Bytes that wait in the transport or were not acknowledged by the peer's kernel."""
        if self._transport.closed:
            return 0
        return self._out_size + self._transport.io.get_write_buffer_size() + unsent_of(self._transport._socket)

    cdef int _abort_now(self) except -1:
        if self._transport is not None and not self._transport.closed:
            if self._dropped == 0:
                self._dropped = self._transport.io.get_write_buffer_size()
            self._transport.io.abort()
        return 0

    cdef Py_ssize_t not_taken(self) noexcept:
        """Bytes given to the loop's transport, at least, that it has not given to the kernel."""
        if self._resuming or not self._transport.holds:
            return 0
        if self._transport.is_secure:
            # These are encrypted: records of up to 16 KB, each with so much around it at most.
            return max(self._dropped - TLS_OVERHEAD * (self._dropped // 16384 + 2), 1)
        return max(self._dropped, 1)               # where the peer has dropped it: one, the transport does not say

    def abort(self, cause=None):
        """Drop the transport now, whatever it still holds; `cause` explains why, where nothing else does."""
        if cause is not None and self.abort_cause is None:
            self.abort_cause = cause
        self._abort_now()

    # ------------------------------------------------------------------ for the connection

    def cork(self, int change):
        """One more (1), or one less (-1), asks that what is sent is gathered. Without effect once it has ended."""
        if self._user is None:
            return
        self.check_here()
        if self._corks == 0:
            self._flush_now()                      # what was sent before does not wait for it
        self._corks = max(self._corks + change, 0)
        if self._corks == 0:
            self._flush_now()

    cdef int _flush_now(self) except -1:
        self.flush()
        return self.after_writing()

    cdef int _refuse_thread(self) except -1:
        if self._user is not None:
            raise self._user.wrong_thread()
        return 0

    cdef int _look_at_loop(self) except -1:
        if self._user is not None and self._loop_writer.is_closed():
            self._user.forget_waiter()
            self.connection_lost(None)
        return 0

    cdef bint in_message(self) noexcept:
        return self._decoder.sequence.kind != 0 or self._decoder.inside

    @property
    def io(self):
        """asyncio's transport; None once it is gone."""
        return self._transport.io

    @property
    def has_ended(self):
        return self._transport.io is None

    @property
    def is_blocked(self):
        return self._transport.holds

    @property
    def is_reading_paused(self):
        return self._read_pauses != 0

    @property
    def unsent_bytes(self):
        return self.unsent()

    @property
    def has_partial_message(self):
        return self.in_message()

    def cut_off_messages(self):
        """The messages of which a part has left, but not the end: the peer cannot have them."""
        return tuple(message_of(item)[0] for item in self.cut_off or ())


cdef int deliver(Session session, Block block, Py_ssize_t n) except -1:
    """Deliver the frames of the `n` bytes that were read into `block`, if the session still wants them."""
    if session._frame_log is not None:
        session._frame_log.received(PyBytes_FromStringAndSize(block.data, n))
    if session._decoder.left != 0:
        return session.receive_behind(block, n)
    session._decoder.feed(<unsigned char*>block.data, n)
    return session.receive_frames()


class SessionProtocol(Session, asyncio.BufferedProtocol):
    """A session, as asyncio knows a protocol that reads into a buffer of its own. The only class to be made."""

    __slots__ = ()
    # uvloop keeps the method of this name of the latest protocol that had one: that of the opening handshake, with all
    # that it holds, as long as the transport lives.
    data_received = None
