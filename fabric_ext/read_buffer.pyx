"""One block of memory per event loop, into which all its connections read.

A read is delivered before the next one begins, so one block serves all, and it is always warm in the cache. What must
outlive the delivery is copied by the session. Owns the block and its size: 64 KB, doubled up to 128 KB while reads
fill it, and back after a while of small ones.

While a read is being delivered its block is taken: a handler that lets the loop run inside (a nested loop, a signal
handler) reads into another one.
"""

import weakref

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.object cimport PyObject
from libc.stdlib cimport free, malloc

cdef enum:
    LARGEST = 128 * 1024         # twice that is slower: it leaves the processor's nearest caches
    QUIET = 256                  # small reads after which a large block is given back


cdef class Block:
    def __cinit__(self, size_t size):
        self.data = <char*>malloc(size)
        if self.data == NULL:
            raise MemoryError(f"cannot allocate {size} bytes to read into")
        self.size = size

    def __dealloc__(self):
        free(self.data)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, 0, flags)


cdef Block new_block(Py_ssize_t size):
    cdef Block block = Block(size)
    block.view = memoryview(block)                 # a cycle, which is broken when the block is given up
    return block


_buffers = weakref.WeakValueDictionary()           # id(loop) -> ReadBuffer, which keeps its loop: no id is reused
cdef PyObject* latest = NULL                       # the one that was asked for last: nearly always, there is one loop


cdef ReadBuffer read_buffer_of(object loop):
    """The read buffer of `loop`, as long as a connection uses it."""
    global latest
    if latest != NULL and (<ReadBuffer>latest)._loop is loop:
        return <ReadBuffer>latest
    buffer = _buffers.get(id(loop))
    if buffer is None:
        buffer = _buffers[id(loop)] = ReadBuffer(loop)
    latest = <PyObject*>buffer
    return buffer


cdef class ReadBuffer:
    def __cinit__(self, loop):
        self._loop = loop
        self.current = new_block(SMALLEST)

    def __dealloc__(self):
        global latest
        if latest == <PyObject*>self:
            latest = NULL
        if self.current is not None:
            self.current.view = None

    cdef Block block(self):
        """A block to read into that is not being delivered from."""
        if self.current.taken:
            self.current = new_block(SMALLEST)
        return self.current

    cdef int _resize(self, Block block, Py_ssize_t n) except -1:
        if block is not self.current:
            block.view = None
            return 0
        if n == block.size:
            self._quiet = 0
            if n < LARGEST:
                self.current = new_block(2 * n)
                block.view = None
        elif block.size > SMALLEST:
            self._quiet = self._quiet + 1 if n < block.size // 4 else 0
            if self._quiet >= QUIET:
                self._quiet = 0
                self.current = new_block(SMALLEST)
                block.view = None
        return 0
