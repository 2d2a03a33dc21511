from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from fabric_ext.broadcast cimport Shared

# A subscription is one Entry with its topic and one with its subscriber: 24 bytes, and what arrays keep to grow.
cdef packed struct Entry:
    PyObject* other              # the Subscriber, not owned: it takes its entries with it; or the Topic, owned
    uint32_t place               # where that one has its entry


cdef struct Entries:
    Entry* at
    uint32_t count
    uint32_t capacity


cdef class Topic:
    cdef readonly str name       # or a pattern
    cdef list tokens             # of a pattern; None: it is none
    cdef Entries entries


cdef class Subscriber:
    cdef readonly object target  # a Connection, or what is called with what is published
    cdef bint is_connection
    cdef uint64_t seen           # the number of the latest message that it was given
    cdef Entries entries
    cdef public dict waiting     # topic -> the newest message, for one that cannot take it yet; None: nothing


cdef class Branch:
    cdef dict branches           # token -> Branch
    cdef Topic ends              # the pattern that ends here
    cdef Topic rest              # the one that has `>` here


cdef class Index:
    cdef dict _topics            # name or pattern -> Topic
    cdef Branch _root            # of the patterns
    cdef Py_ssize_t _patterns
    cdef uint64_t _published
    cdef readonly Py_ssize_t subscriptions

    cdef list find(self, str name)
    cdef Py_ssize_t offer(self, str name, Shared shared, object exclude, list rest) except -1
    cdef Py_ssize_t place_of(self, Subscriber subscriber, Topic topic) except -2
    cdef int add_pattern(self, Topic topic, list branches) except -1
    cdef int remove(self, Topic topic) except -1
    cdef bint separate(self, Subscriber subscriber, uint32_t place) except -1
