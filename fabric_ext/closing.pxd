from libc.stdint cimport uint64_t


cdef Py_ssize_t unsent_of(int fd) noexcept
cdef bint peer_is_done(int fd) noexcept


cdef class CloseHandshake:
    cdef readonly str began_by       # "local" or "remote"
    cdef readonly int sent_code      # of the close frame we sent; 0: none
    cdef readonly int received_code  # of the close frame received; 0: none, 1005: it had no body
    cdef readonly str reason         # what goes with the code that counts
    cdef readonly str sent_reason    # of the close frame we sent
    cdef readonly str received_reason    # of the one received
    cdef readonly int fault          # the frames.Fault for which we failed the connection
    cdef readonly object cause       # the exception behind it, or None
    cdef bint is_put_off             # our close frame waits until a thread has taken what came before the fault
    cdef readonly uint64_t oversize      # bytes that a message refused with 1009 has, or has at least
