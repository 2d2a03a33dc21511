"""What one turn of the event loop sends to many: the items, and for each receiver a chain of those that are its own.

Items are kept once. A chain costs 8 bytes a delivery, in one array for all receivers, and is emptied as a whole when
all have been served. Knows nothing of connections: a receiver keeps the first and the last node of its chain.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, realloc

cdef enum:
    FIRST_NODES = 256


cdef class FanOut:
    """The items of a turn and their receivers."""

    def __cinit__(self):
        self.items = []
        self.receivers = []
        self.count = 1

    def __dealloc__(self):
        free(self.nodes)

    cdef int add_item(self, object item, Py_ssize_t size) except -1:
        """Keep what `new_node(len(items) - 1)` gives to receivers; it has `size` bytes."""
        self.items.append(item)
        self.size += size
        return 0

    cdef uint32_t new_node(self, uint32_t item) except 0:
        """The last node of a chain."""
        cdef uint32_t capacity
        cdef void* grown
        if self.count >= self._capacity:
            capacity = max(2 * self._capacity, FIRST_NODES)
            grown = realloc(self.nodes, capacity * sizeof(Node))
            if grown == NULL:
                raise MemoryError("cannot remember which receiver is to be sent what")
            self.nodes, self._capacity = <Node*>grown, capacity
        self.nodes[self.count].next = 0
        self.nodes[self.count].item = item
        self.count += 1
        return self.count - 1

    cdef int clear(self) except -1:
        """Everybody has been served, and no chain is being walked: let go of the items and the receivers."""
        cdef list items = self.items, receivers = self.receivers
        self.items, self.receivers = [], []
        self.served = self.size = 0
        self.count = 1
        if self._capacity > FIRST_NODES:           # an idle loop keeps no memory for it
            free(self.nodes)
            self.nodes, self._capacity = NULL, 0
        items.clear()                              # may run anything, by now without consequences
        receivers.clear()
        return 0
