# cython: language_level=3
"""What a program of your own may do in C with what fabric ships: read messages without a Python call, and record.

The layouts come from the `.pxd` files inside the installed package; `run.py` compiles this file against them.
"""

from libc.stdint cimport int64_t
from libc.string cimport memcpy

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from fabric_ext.clock cimport monotonic_ns
from fabric_ext.histogram cimport Histogram
from fabric_ext.message cimport K_BINARY, Message


cdef class Pinger:
    """Sends the time, and when its echo arrives records how old it is and sends the time again."""

    cdef readonly Histogram latency
    cdef readonly Py_ssize_t left
    cdef object done

    def __init__(self, Py_ssize_t count, done):
        self.latency = Histogram()
        self.left = count
        self.done = done

    cdef bytes now(self):
        cdef int64_t at = monotonic_ns()
        return PyBytes_FromStringAndSize(<char*>&at, sizeof(at))

    def start(self, client):
        client.send_nowait(self.now())

    def on_message(self, client, Message message not None):
        """The client's `on_message`: called right where the message arrives."""
        cdef int64_t sent
        # `kind` and `data` are C fields: no attribute is looked up, nothing is copied.
        if message.kind != K_BINARY or PyBytes_GET_SIZE(message.data) != sizeof(sent):
            raise ValueError("this is not an echo")
        memcpy(&sent, PyBytes_AS_STRING(message.data), sizeof(sent))
        self.latency.record(monotonic_ns() - sent)
        self.left -= 1
        if self.left:
            client.send_nowait(self.now())
        else:
            self.done.set_result(None)
