"""The sending end of a transport: frames are gathered into one buffer and leave by one system call.

Owns the gather buffer ("cork"), the order of bytes, and a list of the messages that are wholly in the buffer. Knows
nothing of the protocol beyond the header of a frame.

When bytes leave. A message sent on a connection that wrote nothing in the last 50 µs and has nothing gathered is at the
kernel when the call returns. What follows closely is gathered, and leaves at the latest
- when more is sent, or before the next frame of the read is delivered, once the oldest of it is 50 µs old,
- when the read that is being delivered ends, or else the turn of the loop,
- when there are 64 KB of it.
So pipelined answers share a system call, and nothing waits for the application's own work. What the kernel does not
take goes to the loop's transport; until it is through nothing is written past it.

Payloads of LARGE bytes and more are not copied when they need no mask: header and payload leave by one sendmsg().

What is sent to many (`Item`) is put off to the end of the turn: then each connection gets by one system call all that is
due to it. A connection on which something else is sent, or that closes, takes what is due first, so order holds.
"""

import weakref

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from fabric_ext.clock cimport monotonic_ns
from fabric_ext.fanout cimport FanOut
from fabric_ext.message cimport MAX_HEADER, write_header

cdef enum:
    FIRST_SIZE = 2048            # what a writer allocates when the loop's block is lent already
    PATIENCE_NS = 50_000         # how long bytes may be gathered while other things are done; SPEC of send()
    SLICE_NS = 2_000_000         # how long a fan-out may hold up everything else
    GLANCE = 16                  # receivers between two looks at the clock
    MAX_NODES = 1 << 18          # 2 MB; more are not put off


_writers = weakref.WeakValueDictionary()       # id(loop) -> LoopWriter, which keeps its loop: no id is reused
cdef PyObject* latest = NULL                   # the LoopWriter that was asked for last: nearly always, there is one loop


cdef LoopWriter loop_writer_of(object loop):
    """What the connections of `loop` share."""
    global latest
    if latest != NULL and (<LoopWriter>latest).loop is loop:
        return <LoopWriter>latest
    writer = _writers.get(id(loop))
    if writer is None:
        writer = _writers[id(loop)] = LoopWriter(loop)
    latest = <PyObject*>writer
    return writer


def hold_back(loop, int64_t ns):
    """For tests: gather bytes for `ns` at most, on `loop`, as long as the object returned is kept."""
    cdef LoopWriter writer = loop_writer_of(loop)
    writer.patience_ns = ns
    return writer


cdef class Item:
    """A message for many connections."""

    cdef int write_to(self, Writer writer) except -1:
        """Give it to `writer.add_made`."""
        raise NotImplementedError


cdef class LoopWriter:
    """What the writers of one event loop share: whether a read is being delivered, which have gathered bytes, and
    what is due to many."""

    def __cinit__(self, loop):
        self.loop = loop
        self._call_soon = loop.call_soon
        self.is_closed = loop.is_closed
        self.patience_ns = PATIENCE_NS
        self.fan_out = FanOut()
        self._spare = <char*>malloc(BLOCK)
        if self._spare == NULL:
            raise MemoryError("cannot allocate the write buffer of an event loop")

    def __dealloc__(self):
        global latest
        if latest == <PyObject*>self:
            latest = NULL
        free(self._spare)

    cdef int look(self) except -1:
        """Read the clock, and write what has been gathered for too long."""
        cdef int64_t now = monotonic_ns()
        if self.due_since and now - self.due_since >= SLICE_NS:
            self.serve(False)
        if self._first is not None and now - self.since >= self.patience_ns:
            return self.flush_all()
        self.fresh = True
        return 0

    cdef int flush_all(self) except -1:
        cdef Writer writer
        cdef int64_t now = monotonic_ns() if self._first is not None else 0
        while self._first is not None:
            writer = self._first
            self._first, writer._next = writer._next, None
            writer._is_gathered = False
            writer._last_sent = now
            if writer._corks:
                continue                       # it leaves when they are gone
            try:
                writer.flush()
            except Exception:                  # its session has ended over it; the others go on
                pass
            except BaseException:
                self._schedule_turn()
                raise
        return 0

    cdef int _schedule_turn(self) except -1:
        """Have what is gathered written at the end of this turn of the loop."""
        if not self._turn_scheduled:
            self._call_soon(self.end_turn)
            self._turn_scheduled = True
        return 0

    def end_turn(self):
        """The turn of the loop is over."""
        self._turn_scheduled = False
        try:
            self.flush_all()
        finally:
            self.serve(False)

    cdef int add_item(self, Item item, Py_ssize_t size) except -1:
        """Have it served at the end of the turn; its receivers follow, by `add_due(len(fan_out.items) - 1)`."""
        if self.fan_out.size + size > BLOCK or self.fan_out.count >= MAX_NODES:
            self.serve(True)
        self._schedule_turn()                  # first: a finalizer that lets the loop run may have this turn end
        if not self.due_since:
            self.due_since = monotonic_ns()
        return self.fan_out.add_item(item, size)

    cdef bint is_full(self, Py_ssize_t size) noexcept:
        """Would an item of so many bytes have all served at once, or is there little room for its receivers?"""
        return self.due_since and (self.fan_out.size + size > BLOCK or self.fan_out.count >= MAX_NODES // 2)

    cdef int serve(self, bint whole) except -1:
        """Write what is due to each connection; unless `whole`, the rest after SLICE_NS follows in the next turn."""
        cdef FanOut fan_out = self.fan_out
        cdef int64_t end
        cdef Writer writer
        if not self.due_since:
            return 0
        end = monotonic_ns() + SLICE_NS
        while fan_out.served < len(fan_out.receivers):
            writer = fan_out.receivers[fan_out.served]
            fan_out.served += 1
            try:
                writer.leave()
            except Exception:                  # as in flush_all
                pass
            except BaseException:
                self._schedule_turn()
                raise
            if not whole and fan_out.served % GLANCE == 0 and monotonic_ns() >= end:
                break
        if fan_out.served < len(fan_out.receivers):
            self.due_since = monotonic_ns()
            return self._schedule_turn()
        if not fan_out.walks:
            self.due_since = 0
            fan_out.clear()
        return 0


cdef class Writer:
    """Writes frames to one transport. `open_writer` is called by the subclass, which also says what becomes of errors."""

    def __dealloc__(self):
        free(self._out)
        drop(self._unsent, self._unsent_count)

    cdef int appended(self, object message) except -1:
        """Frames were added, which are the whole of `message` unless it is None: write them now, or let them wait."""
        cdef int64_t now
        if self._corks or self._busy or self._transport.holds:
            self._keep(message)
            return self.flush() if self._corks and self._out_size >= BLOCK else 0
        if self._out_size >= BLOCK or self._uncorked:
            return self.flush_with(message)
        if not self._is_gathered:
            now = self._loop_writer.read_ns    # it is later by now, but if that is late enough, so is now
            if now - self._last_sent < self._loop_writer.patience_ns:
                now = monotonic_ns()
            if now - self._last_sent >= self._loop_writer.patience_ns:
                self._last_sent = now
                return self.flush_with(message)
            if self._loop_writer._first is None:
                self._loop_writer.since = now
                self._loop_writer.fresh = True
            self._gather()
        elif self._loop_writer.fresh:
            self._loop_writer.fresh = False    # the next one looks at the clock, unless a frame is delivered before it
        elif monotonic_ns() - self._loop_writer.since >= self._loop_writer.patience_ns:
            self._keep(message)
            return self._loop_writer.flush_all()
        return self._keep(message)

    cdef inline int _keep(self, object message) except -1:
        """Remember a message until its bytes leave."""
        if message is not None:
            if self._unsent_count == self._unsent_capacity:
                self._grow_unsent()
            Py_INCREF(message)                 # held by the array
            self._unsent[self._unsent_count].message = <PyObject*>message
            self._unsent[self._unsent_count].end = self._out_size
            self._unsent_count += 1
        return 0

    cdef int _grow_unsent(self) except -1:
        cdef Py_ssize_t capacity = max(2 * self._unsent_capacity, 8)
        cdef void* grown = realloc(self._unsent, capacity * sizeof(Gathered))
        if grown == NULL:
            raise MemoryError("cannot remember what is sent")
        self._unsent = <Gathered*>grown
        self._unsent_capacity = capacity
        return 0

    cdef int _gather(self) except -1:
        """Have the loop's writer flush this one at the end of the read or of the turn."""
        cdef LoopWriter writer = self._loop_writer
        self._is_gathered = True
        self._next, writer._first = writer._first, self
        return 0 if writer.reading else writer._schedule_turn()

    cdef int write_large(self, uint8_t first, const char* p, Py_ssize_t n, object payload, object message) except -1:
        """Write one unmasked frame whose payload lies in `payload`, str or bytes, and is not copied, if it can leave now."""
        cdef uint8_t header[MAX_HEADER]
        cdef Py_ssize_t size
        cdef bint returned = False
        if self._corks or self._busy or self._transport.holds or self._out_size:
            self.append_frame(first, p, n)
            return self.appended(message)
        size = write_header(header, first, n, False, 0)
        self._last_sent = monotonic_ns()
        self._busy = True
        try:
            self._transport.write_two(<char*>header, size, p, n, payload)
            if self._frame_log is not None:
                self._note(<char*>header, size)
                self._note(p, n)
            returned = True
        finally:
            self._busy = False
            if not returned:
                self.on_write_failed()
        if self._transport.lost:
            if message is not None:
                self.on_unsent([message])
        elif self._transport.holds and message is not None:
            self._note_held([(message, size + n)], size + n)
        return self._gather_rest()

    cdef int make_way(self) except -1:
        """A payload that need not be copied is about to be sent: write what was gathered before it, if that may leave.

        Before it is compressed: whatever is sent meanwhile, by a finalizer, is compressed and written before it too.
        """
        return self.flush() if self._out_size and not self._corks else 0

    cdef int _gather_rest(self) except -1:
        """What was sent while the transport was busy, by a finalizer or a signal handler, leaves with the read or the turn."""
        if self._out_size == 0 or self._transport is None:
            return 0
        if self._corks or self._is_gathered or self._busy or self._transport.holds:
            return 0
        return self._gather()

    cdef int write_raw(self, const char* p, Py_ssize_t n, object message) except -1:
        """Write the frames of a whole message that are made already, such as those of a broadcast."""
        self._reserve(n)
        memcpy(self._out + self._out_size, p, n)
        self._out_size += n
        return self.appended(message)

    cdef int flush(self) except -1:
        """Write what was gathered, and what is due."""
        if self._due:
            self.take_due()
        return self.flush_with(None)

    cdef int add_due(self, uint32_t item) except -1:
        """Have an item of the loop's fan-out sent."""
        cdef FanOut fan_out = self._loop_writer.fan_out
        cdef uint32_t node = fan_out.new_node(item)
        if self._due:
            fan_out.nodes[self._last_due].next = node
        else:
            fan_out.receivers.append(self)
            self._due = node
        self._last_due = node
        return 0

    cdef int leave(self) except -1:
        """Write what is due, as far as nothing asks that it waits."""
        if self._due:
            self.take_due()
            if not self._corks or self._out_size >= BLOCK:
                return self.flush_with(None)
        return 0

    cdef int take_due(self) except -1:
        """Gather what is due: it comes before whatever is sent from now on."""
        cdef FanOut fan_out = self._loop_writer.fan_out
        cdef uint32_t at = self._due
        cdef Item item
        self._due = 0
        fan_out.walks += 1
        try:
            while at:
                item = fan_out.items[fan_out.nodes[at].item]
                item.write_to(self)
                at = fan_out.nodes[at].next
        except BaseException:                  # what follows would be one message short
            self.on_write_failed()
            raise
        finally:
            fan_out.walks -= 1
        return 0

    cdef int add_made(self, const char* p, Py_ssize_t n, object message) except -1:
        """Gather the frames of a whole message that are made already; `flush` follows, or `appended`."""
        self._reserve(n)
        memcpy(self._out + self._out_size, p, n)
        self._out_size += n
        return self._keep(message)

    cdef int flush_with(self, object message) except -1:
        """Write what was gathered, whose last bytes are `message`, unless it is None, and are not in the list yet."""
        cdef char* block = self._out
        cdef Py_ssize_t size = self._out_size, capacity = self._out_capacity
        cdef Gathered* unsent = self._unsent
        cdef Py_ssize_t count = self._unsent_count
        cdef bint returned = False
        if size == 0 or self._busy or self._transport is None or self._transport.holds:
            return self._keep(message)
        # What is sent while the transport writes, by a collector or a signal handler, must not touch these.
        self._out = NULL
        self._out_size = self._out_capacity = 0
        self._unsent = NULL
        self._unsent_count = self._unsent_capacity = 0
        self._flushes += 1
        self._busy = True
        try:
            self._transport.write(block, size)
            if self._frame_log is not None:
                self._note(block, size)
            returned = True
        finally:
            self._busy = False
            self._give_back(block, capacity)
            if not returned:
                self._failed(unsent, count)
        if self._transport is not None and self._transport.lost:
            return self._lost(unsent, count, message)
        if self._transport is not None and self._transport.holds:
            self._note_held(with_ends(unsent, count, message, size), size)
        elif count:
            drop(unsent, count)
        return self._gather_rest()

    cdef int _failed(self, Gathered* unsent, Py_ssize_t count) except -1:
        """Handing bytes over raised: the messages that were among them are forgotten."""
        try:
            self.on_write_failed()
        finally:
            drop(unsent, count)
        return 0

    cdef int _lost(self, Gathered* unsent, Py_ssize_t count, object message) except -1:
        """The kernel said that the connection is lost: none of this has left."""
        cdef list messages = taken(unsent, count)
        if message is not None:
            messages.append(message)
        return self.on_unsent(messages + self.take_unsent())

    cdef int hand_over(self) except -1:
        """Give what was gathered to the loop's transport, behind what that still holds: it is to be closed."""
        cdef bytes rest
        cdef Gathered* unsent
        cdef Py_ssize_t count
        self.flush()
        if self._out_size and self._transport is not None and not self._busy:
            rest = self._out[:self._out_size]
            self._out_size = 0
            self._give_back(self._out, self._out_capacity)
            self._out = NULL
            self._out_capacity = 0
            unsent, count = self._unsent, self._unsent_count
            self._unsent = NULL
            self._unsent_count = self._unsent_capacity = 0
            self._note_held(with_ends(unsent, count, None, 0), len(rest))
            if self._frame_log is not None:
                self._note(rest, len(rest))
            self._transport.pass_on(rest)
        return 0

    cdef int _note_held(self, list messages, Py_ssize_t size) except -1:
        """The loop's transport keeps some of `size` bytes, in which `messages` end: behind what it keeps already."""
        if self._held is None:
            self._held = []
            self._held_size = 0
        for message, end in messages:
            self._held.append((message, self._held_size + end))
        self._held_size += size
        return 0

    cdef list take_held(self, Py_ssize_t left):
        """The messages whose ends are among the last `left` bytes that were given to the loop's transport."""
        cdef list held = self._held
        self._held = None
        if held is None:
            return []
        return [message for message, end in held if end > self._held_size - left]

    cdef int _note(self, const char* p, Py_ssize_t n) except -1:
        """Tell the log of frames that these bytes were handed over."""
        if not self._transport.lost:
            self._frame_log.sent(p[:n])
        return 0

    cdef list take_unsent(self):
        """The messages that are gathered and will not be written any more, oldest first; the bytes are dropped."""
        cdef list messages = [<object>self._unsent[i].message for i in range(self._unsent_count)]
        self._forget_unsent()
        self._out_size = 0
        self._give_back(self._out, self._out_capacity)
        self._out = NULL
        self._out_capacity = 0
        return messages

    cdef int _forget_unsent(self) except -1:
        cdef Gathered* unsent = self._unsent
        cdef Py_ssize_t count = self._unsent_count
        self._unsent = NULL
        self._unsent_count = self._unsent_capacity = 0
        return drop(unsent, count)

    cdef int on_unsent(self, list messages) except -1:
        """The connection is lost, as the kernel said; these were not sent."""
        return 0

    cdef int on_write_failed(self) except -1:
        """Handing bytes over raised: how many have left is not known."""
        return 0

    cdef int _grow(self, Py_ssize_t n) except -1:
        cdef Py_ssize_t needed = self._out_size + n
        cdef Py_ssize_t capacity
        cdef char* block
        if needed > BLOCK:
            capacity = needed                  # it is written before much is added
        else:
            capacity = max(self._out_capacity, FIRST_SIZE)
            while capacity < needed:
                capacity *= 2
        block = <char*>realloc(self._out, capacity)
        if block == NULL:
            raise MemoryError(f"cannot allocate {capacity} bytes to send")
        self._out, self._out_capacity = block, capacity
        return 0

    cdef void _give_back(self, char* block, Py_ssize_t capacity) noexcept:
        """An idle connection holds no buffer, its loop one."""
        cdef char* smaller
        if block != NULL and capacity >= BLOCK and self._loop_writer._spare == NULL:
            smaller = block if capacity == BLOCK else <char*>realloc(block, BLOCK)
            if smaller != NULL:
                self._loop_writer._spare = smaller
                return
        free(block)


cdef int drop(Gathered* items, Py_ssize_t count) except -1:
    """Let go of an array of messages; each may run anything."""
    cdef Py_ssize_t i
    for i in range(count):
        Py_DECREF(<object>items[i].message)
    free(items)
    return 0


cdef list taken(Gathered* items, Py_ssize_t count):
    """The messages as a list."""
    cdef list result = [<object>items[i].message for i in range(count)]
    drop(items, count)
    return result


cdef list with_ends(Gathered* items, Py_ssize_t count, object last, Py_ssize_t end):
    """The messages as a list, each with the end of its bytes; `last` comes behind them, unless it is None."""
    cdef list result = [(<object>items[i].message, items[i].end) for i in range(count)]
    if last is not None:
        result.append((last, end))
    drop(items, count)
    return result
