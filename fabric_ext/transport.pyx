"""The bytes of one connection on their way out: picows' C transport, over the event loop's own.

The only module that knows picows. It uses three things of `picows.WSTransport`: that it holds the descriptor and tells
a secure connection from a plain one, that its C writer (`_fast_write`) hands bytes to the kernel at once or else to
the loop's transport, and that it knows the thread it belongs to. picows' protocol, parser, listener and handshake are
not used.

Owns one fact that the order of bytes depends on: whether the loop's transport holds some (`holds`). It is true from the
instant at which the kernel has refused a byte, before anything can run Python, until the transport says that it is
through. Code that writes asks it first.
"""

import logging

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from picows.picows cimport MemoryBuffer, WSTransport

cdef extern from *:
    """
    #include <errno.h>
    #include <sys/socket.h>
    #include <sys/uio.h>

    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0      /* macOS; Python ignores SIGPIPE anyway */
    #endif

    /* -2 for a lost connection: the kernel reports some of these errors only once. */
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

cdef object LOGGER = logging.getLogger("fabric.transport")

# picows gives each transport 1 KB to build frames in. We build our own, so all can share one.
cdef MemoryBuffer NO_BUFFER = MemoryBuffer(1)


def _nothing():
    """What a transport holds that may be written to."""
    return 0


cdef class Transport(WSTransport):
    """Writes to the socket of `io`, an asyncio transport after its opening handshake."""

    def __cinit__(self, io not None, loop not None):
        """What is made without arguments, picows would crash on."""

    def __init__(self, io, loop):
        WSTransport.__init__(self, False, io, LOGGER, loop)
        self._write_buffer = NO_BUFFER
        self.disconnected_future = None            # picows' own protocol would set it
        self.io = io
        if not self.is_secure:
            # What the kernel does not take comes to us first: see `__call__`, which needs no bound method.
            self._tr_write = self
            # picows asks before each write how much the loop's transport holds. We never write while it holds something.
            self._tr_get_write_buffer_size = _nothing
        # resume_writing() is then: it holds nothing any more. The event loops' own TLS pauses at the limit, others above it:
        # at 0 it would pause while it holds nothing, and nothing would end that.
        io.set_write_buffer_limits(high=1 if self.is_secure and not self._is_aiofn_transport else 0, low=0)
        self.holds = io.get_write_buffer_size() != 0

    cdef int write(self, char* p, Py_ssize_t n) except -1:
        """Hand over `n` bytes; they are copied where the kernel does not take them at once.

        Afterwards `holds` and `lost` tell how it went. `lost`: the connection is gone, and no byte was taken.
        """
        if self.closed:
            return 0
        assert self._may_write(), "written past bytes that the loop's transport holds"
        self._wanted = n
        self._fast_write(p, n)
        if self.is_secure:
            self.holds = self._tr_get_write_buffer_size() != 0
        return 0

    cdef bint _may_write(self) except -1:
        return self.is_secure or self.io.get_write_buffer_size() == 0

    def __call__(self, bytes data not None):
        """The kernel did not take `data`, says picows: learn why, or have the loop's transport keep it."""
        cdef ssize_t sent
        self.holds = True                          # from now on nothing may go to the kernel past it
        sent = c_send(self._socket, PyBytes_AS_STRING(data), len(data))
        if sent == T_LOST and len(data) == self._wanted:
            self.lost = True
            return
        self.pass_on(data[sent:] if sent > 0 else data)

    cdef int write_two(self, const char* head, Py_ssize_t size, const char* p, Py_ssize_t n, object owner) except -1:
        """As write(), for a header and a payload that lies in `owner`, bytes or str, and is not copied.

        What the kernel does not take of a str is: the loop's transport wants bytes.
        """
        cdef ssize_t sent = 0
        cdef Py_ssize_t start
        if self.closed:
            return 0
        if not self.is_secure and not self.holds:
            sent = c_send_two(self._socket, head, size, p, n)
            if sent == size + n:
                return 0
            self.holds = True
            if sent == T_LOST:
                self.lost = True
                return 0
            sent = max(sent, 0)
        if sent < size:
            self.pass_on(PyBytes_FromStringAndSize(head + sent, size - sent))
            sent = size
        if not isinstance(owner, bytes):
            return self.pass_on(PyBytes_FromStringAndSize(p + (sent - size), n - (sent - size)))
        start = p - PyBytes_AS_STRING(owner) + (sent - size)
        return self.pass_on(memoryview(owner)[start:start + n - (sent - size)])

    cdef int pass_on(self, object data) except -1:
        self.holds = True
        self.io.write(data)
        self.holds = self.io is not None and self.io.get_write_buffer_size() != 0
        return 0

    cdef int detach(self) except -1:
        """Forget the socket: its number may soon be another's."""
        self.closed = self.holds = True
        self._socket = -1
        self.io = self._tr_write = self._tr_get_write_buffer_size = None
        self.underlying_transport = None
        return 0
