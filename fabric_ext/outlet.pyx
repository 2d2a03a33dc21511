"""The sending end of a connection: frames are gathered into one buffer and leave by one system call.

Owns the gather buffer ("cork") and the direct path to the socket. Knows nothing of messages, limits or the protocol.

When bytes leave. While the frames of one read are being delivered (`hub.reading`), everything sent, by whichever
connection of the loop, is gathered and leaves when the read ends. Outside a read, the first send of a connection in a
turn of the loop leaves at once; what follows in the same turn is gathered and leaves at the end of the turn. Nothing
waits for a timer, and nothing waits long for others: where the messages of one read take their time, what has been
gathered leaves before the read ends (PATIENCE_NS). What the kernel does not take goes to the transport, which holds it
and says when it is through (`_blocked`, set and cleared by the connection); until then nothing is written directly, so
the order holds.

Payloads of LARGE bytes and more are not copied when they need no mask: header and payload leave by one writev().
"""

import weakref

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from fabric_ext.bucket cimport monotonic_ns
from fabric_ext.mask cimport apply_mask, next_key
from fabric_ext.message cimport MAX_HEADER, write_header

cdef extern from *:
    """
    #include <errno.h>
    #include <sys/socket.h>
    #include <sys/uio.h>

    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0      /* macOS; Python ignores SIGPIPE anyway */
    #endif

    /* -1: not now, or whatever the transport will find out; -2: the connection is lost, and says so but once. */
    static inline ssize_t fabric_sent(ssize_t n) {
        return n < 0 && (errno == EPIPE || errno == ECONNRESET || errno == ETIMEDOUT) ? -2 : n;
    }

    static inline ssize_t fabric_send(int fd, const void *p, size_t n) {
        return fabric_sent(send(fd, p, n, MSG_NOSIGNAL));
    }

    static inline ssize_t fabric_send_two(int fd, const void *a, size_t na, const void *b, size_t nb) {
        struct iovec parts[2] = {{(void *)a, na}, {(void *)b, nb}};
        struct msghdr message = {0};
        message.msg_iov = parts;
        message.msg_iovlen = 2;
        return fabric_sent(sendmsg(fd, &message, MSG_NOSIGNAL));
    }
    """
    ssize_t c_send "fabric_send"(int fd, const void* p, size_t n) noexcept
    ssize_t c_send_two "fabric_send_two"(int fd, const void* a, size_t na, const void* b, size_t nb) noexcept

cdef enum:
    LOST = -2                    # what a send answers when the connection is lost
    SPARE_SIZE = 65536           # the hub's block; also where a gathering outlet stops waiting and writes
    FIRST_SIZE = 2048            # what an outlet allocates when the spare block is lent already
    LARGE = 8192                 # payloads from here on are written from where they lie
    PATIENCE_NS = 100_000        # for which a frame is held back in a read that goes on
    STRIDE = 8                   # frames from one look at the clock to the next, where messages are quick


_hubs = weakref.WeakValueDictionary()          # id(loop) -> Hub; a hub keeps its loop, so an id is not reused


cdef Hub hub_of(object loop):
    """The hub shared by all connections of `loop`."""
    hub = _hubs.get(id(loop))
    if hub is None:
        hub = _hubs[id(loop)] = Hub(loop)
    return hub


def hold_back(loop, int64_t ns):
    """For tests: hold frames back for `ns` at most, in reads of `loop` from now on."""
    hub_of(loop).patience_ns = ns


cdef class Hub:
    """What the connections of one event loop share: whether a read is in progress, and who has gathered bytes."""

    def __cinit__(self, loop):
        self.loop = loop
        self._call_soon = loop.call_soon
        self.patience_ns = PATIENCE_NS
        self.turn = 1                          # an outlet begins with 0: it has not written in any turn yet
        self._spare = <char*>malloc(SPARE_SIZE)
        if self._spare == NULL:
            raise MemoryError("cannot allocate the write buffer of an event loop")

    def __dealloc__(self):
        free(self._spare)

    cdef void begin_read(self) noexcept:
        """The frames of one read are delivered from now on."""
        self.reading = True
        self._held = 0
        self._look_at = 2                      # a lone answer leaves anyway
        self._held_since = self._looked = 0

    cdef int hold(self) except -1:
        """One more frame waits for the end of the read; or leaves now, with all others, when that takes too long."""
        cdef int64_t now
        self._held += 1
        if self._held < self._look_at:
            return 0
        now = monotonic_ns()
        if self._held_since == 0:
            self._held_since = now
        elif now - self._held_since >= self.patience_ns:
            self._held_since = now
            self._look_at = self._held + 1
            return self.flush_all()
        # Those since the latest look tell whether STRIDE more would take too long.
        self._look_at = self._held + (STRIDE if now - self._looked < self.patience_ns // STRIDE else 1)
        self._looked = now
        return 0

    cdef int flush_all(self) except -1:
        cdef Outlet outlet
        while self._dirty is not None:
            outlet = self._dirty
            self._dirty, outlet._next_dirty = outlet._next_dirty, None
            outlet._is_dirty = False
            try:
                outlet.flush()
            except Exception as error:         # the fault of one connection is not to hold up the others
                self.loop.call_exception_handler({"message": f"{outlet!r} cannot write", "exception": error})
        return 0

    cdef int begin_turn(self) except -1:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._call_soon(self.end_turn)
        return 0

    def end_turn(self):
        """The turn of the loop is over: write what was gathered in it."""
        self._turn_scheduled = False
        self.turn += 1
        self.flush_all()


cdef class Outlet(Inbox):
    """An inbox that can also send. Made usable by `attach`; without a transport every write is an error of ours."""

    def __cinit__(self, *args, **kwargs):
        self._fd = -1

    def __dealloc__(self):
        free(self._out)                        # a block lent by the hub is given back before: see _release

    cdef int write_frame(self, uint8_t first, const char* p, Py_ssize_t n, object owner) except -1:
        """Send one frame: `first` is FIN, RSV and opcode; `owner` keeps `p` alive and unchanged (None: copy it)."""
        cdef uint8_t header[MAX_HEADER]
        cdef uint8_t* at
        cdef uint32_t key = 0
        cdef Py_ssize_t size
        if self._masking:
            key = next_key()
        elif n >= LARGE and owner is not None:
            size = write_header(header, first, n, False, 0)
            return self._write_large(<char*>header, size, p, n, owner)
        self._reserve(n + MAX_HEADER)
        at = <uint8_t*>self._out + self._out_size
        size = write_header(at, first, n, self._masking, key)
        if self._masking:
            apply_mask(at + size, <const uint8_t*>p, n, key, 0)
        else:
            memcpy(at + size, p, n)
        self._out_size += size + n
        return self._gather()

    cdef int write_raw(self, const char* p, Py_ssize_t n, object owner) except -1:
        """Send bytes that are already frames, such as the one frame of a broadcast."""
        cdef ssize_t sent = 0
        if self._out_size == 0 and self._fd >= 0 and not self._blocked:
            sent = c_send(self._fd, p, n)
            if sent == n:
                return 0
            if sent < 0:
                self._lost = sent == LOST
                sent = 0
        elif n < LARGE:
            self._reserve(n)
            memcpy(self._out + self._out_size, p, n)
            self._out_size += n
            return self._gather()
        else:
            self.flush()
        if self._lost:
            return self.on_broken(PyBytes_FromStringAndSize(p, n))
        return self._pass_on(p + sent, n - sent, owner)

    cdef int _write_large(self, const char* header, Py_ssize_t size, const char* p, Py_ssize_t n,
                          object owner) except -1:
        cdef ssize_t sent = 0
        self.flush()
        if self._fd >= 0 and not self._blocked:
            sent = c_send_two(self._fd, header, size, p, n)
            if sent == size + n:
                return 0
            if sent < 0:
                self._lost = sent == LOST
                sent = 0                       # whatever else is wrong, the transport finds it out and reports it
        if self._lost:
            return self.on_broken(PyBytes_FromStringAndSize(header, size) + PyBytes_FromStringAndSize(p, n))
        if sent < size:
            self._pass_on(header + sent, size - sent, None)
            sent = size
        return self._pass_on(p + (sent - size), n - (sent - size), owner)

    cdef int _gather(self) except -1:
        """Bytes were appended to the buffer: write them now, or note that they wait."""
        if self._out_size >= SPARE_SIZE:
            return self.flush()
        if not self._hub.reading:
            self._hub.begin_turn()
            if self._turn != self._hub.turn:
                self._turn = self._hub.turn
                return self.flush()
        if not self._is_dirty:
            self._is_dirty = True
            self._next_dirty, self._hub._dirty = self._hub._dirty, self
        return self._hub.hold() if self._hub.reading else 0

    cdef int flush(self) except -1:
        """Write everything gathered; what the kernel refuses goes to the transport."""
        cdef ssize_t sent = 0
        cdef Py_ssize_t size = self._out_size
        if size == 0:
            return 0
        self._out_size = 0
        self._flushes += 1
        try:
            if self._fd >= 0 and not self._blocked:
                sent = c_send(self._fd, self._out, size)
                if sent < 0:
                    self._lost = sent == LOST
                    sent = 0
            if self._lost:
                return self.on_broken(PyBytes_FromStringAndSize(self._out, size))
            if sent < size:
                self._pass_on(self._out + sent, size - sent, None)
            return self.on_written()
        finally:
            self._release()

    cdef int _pass_on(self, const char* p, Py_ssize_t n, object owner) except -1:
        """Hand bytes to the transport, which keeps them until the kernel takes them.

        `owner`, when it is a bytes object, is kept instead of a copy.
        """
        cdef Py_ssize_t start
        if self._write is None:
            return 0                           # the transport is gone; whoever waits is told by the connection
        if type(owner) is bytes:
            start = p - PyBytes_AS_STRING(owner)
            self._write(memoryview(owner)[start:start + n])
        else:
            self._write(PyBytes_FromStringAndSize(p, n))
        return 0

    cdef int on_written(self) except -1:
        """All that was gathered has left."""
        return 0

    cdef int on_broken(self, bytes unwritten) except -1:
        """The kernel says that the connection is lost, and took no byte of `unwritten`, which are whole frames.

        The transport will learn it when it reads.
        """
        self._blocked = True
        return 0

    cdef bytes take_output(self):
        """What was gathered and not written: the transport is gone."""
        cdef bytes unwritten = PyBytes_FromStringAndSize(self._out, self._out_size)
        self._out_size = 0
        self._release()
        return unwritten

    cdef int _reserve(self, Py_ssize_t n) except -1:
        cdef Py_ssize_t needed = self._out_size + n
        cdef Py_ssize_t capacity
        cdef char* block
        if needed <= self._out_capacity:
            return 0
        if self._out == NULL and needed <= SPARE_SIZE and self._hub._spare != NULL:
            self._out, self._hub._spare = self._hub._spare, NULL
            self._out_capacity = SPARE_SIZE
            return 0
        if needed > SPARE_SIZE:
            capacity = needed                  # it is written before anything is added
        else:
            capacity = max(self._out_capacity, FIRST_SIZE)
            while capacity < needed:
                capacity *= 2
        block = <char*>realloc(self._out, capacity)
        if block == NULL:
            raise MemoryError(f"cannot allocate {capacity} bytes to send")
        self._out, self._out_capacity = block, capacity
        return 0

    cdef void _release(self) noexcept:
        """Give the buffer back: an idle connection holds none."""
        cdef char* block = NULL
        if self._out_size == 0 and self._out != NULL:
            if self._out_capacity >= SPARE_SIZE and self._hub._spare == NULL:
                block = self._out if self._out_capacity == SPARE_SIZE else <char*>realloc(self._out, SPARE_SIZE)
            if block != NULL:
                self._hub._spare = block
            else:
                free(self._out)
            self._out = NULL
            self._out_capacity = 0
