"""What a session reports to: messages and parts, what it could not send, and its end. The base of every connection."""

from cython cimport final, no_gc

from fabric_ext.message cimport Message
from fabric_ext.receive_queue cimport ReceiveQueue


cdef Part new_part(object data, bint last, bint is_cut_off):
    cdef Part part = Part.__new__(Part)
    part.data = data
    part.final = last
    part.is_cut_off = is_cut_off
    return part


# As Message: no cycle can pass through an exact str or bytes, and no finalizer runs where one is made.
@final
@no_gc
cdef class Part:
    """One part of a message that is received as a stream."""


cdef class SessionUser(ReceiveQueue):
    """What a session reports to; the base of a connection."""

    cdef int deliver(self, Message message) except -1:
        """A message has arrived."""
        return 0

    cdef int deliver_part(self, Part part) except -1:
        """A part of a message has arrived."""
        return 0

    cdef int on_closing(self) except -1:
        """A close frame was sent or received, or the connection failed."""
        return 0

    cdef int on_blocked(self) except -1:
        """The transport holds bytes that the kernel has not taken: nothing more can be sent now."""
        return 0

    cdef int on_writable(self) except -1:
        """It holds none any more."""
        return 0

    cdef int on_unsent(self, list messages) except -1:
        """The connection is lost; these messages, oldest first, counted as sent and were not."""
        return 0

    cdef int on_ended(self) except -1:
        """The transport is gone."""
        return 0

    cdef object begin_send(self, object message, object option):
        """What `send(message)` does when it is awaited: None when that was all, else the coroutine that goes on."""
        raise TypeError(f"cannot send on a {type(self).__name__}")

    cdef object wrong_thread(self):
        """The exception for a call from a thread that is not the connection's."""
        return RuntimeError("this connection belongs to another thread: use asyncio.run_coroutine_threadsafe")

    cdef int forget_waiter(self) except -1:
        """The event loop is closed: the task that waits here will not run any more."""
        self._waiter = self._future = None
        return 0

    cdef object session_now(self):
        """The session, or None while there is none."""
        return None

    def _is_followed(self, session):
        """Does another session follow this one, which the peer has closed? Then nothing is worth waiting for."""
        return False

    def _on_pong(self, bytes payload):
        """A pong arrived."""

    def _explain(self, int fault, length, before, cause):
        """What to say of a fault of the peer: `(code, reason, cause)`, or None to say what `fabric_ext.protocol` does.

        `length` is what the frame announces, `before` what its message had before it, in bytes.
        """
        return None

    def _on_failed(self, error, bint in_callback):
        """The application's callback raised, or reading did; the connection is being failed with 1011."""
