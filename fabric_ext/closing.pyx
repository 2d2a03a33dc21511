"""How the end of a session stands: the close handshake (RFC 6455 §7), and what the kernel knows of the peer."""

from cython cimport final

cdef extern from *:
    """
    #include <poll.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    #include <termios.h>

    /* Bytes that the peer's kernel has not acknowledged. */
    static int fabric_unsent(int fd) {
        int n = 0;
    #if defined(SO_NWRITE)
        socklen_t size = sizeof(n);
        if (getsockopt(fd, SOL_SOCKET, SO_NWRITE, &n, &size) < 0) n = 0;
    #else
        if (ioctl(fd, TIOCOUTQ, &n) < 0) n = 0;
    #endif
        return n;
    }

    /* Has the peer sent all that it will ever send? */
    static int fabric_peer_is_done(int fd) {
    #if defined(POLLRDHUP)
        struct pollfd state = {fd, POLLRDHUP, 0};
        return poll(&state, 1, 0) > 0 && (state.revents & (POLLRDHUP | POLLHUP | POLLERR));
    #else
        (void)fd;
        return 0;
    #endif
    }
    """
    int fabric_unsent(int fd) noexcept
    bint fabric_peer_is_done(int fd) noexcept


cdef Py_ssize_t unsent_of(int fd) noexcept:
    """Bytes that the kernel of the peer has not acknowledged."""
    return fabric_unsent(fd)


cdef bint peer_is_done(int fd) noexcept:
    """Has the peer sent all that it will ever send, or gone?"""
    return fabric_peer_is_done(fd)


@final
cdef class CloseHandshake:
    """How the end of a session came about: began by whom, which codes, and why."""

    def __cinit__(self):
        self.reason = self.sent_reason = self.received_reason = ""
