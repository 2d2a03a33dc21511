"""Masking of payloads, and the keys for it (RFC 6455 §5.3, §10.3).

Owns a pool of random bytes from the operating system, which no two processes share. Never knows of frames.
"""

import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcpy

cdef extern from "_mask.h" nogil:
    enum: FABRIC_MASK_LONG
    ctypedef void (*fabric_mask_kernel)(uint8_t* dst, const uint8_t* src, size_t n, uint32_t key) noexcept
    fabric_mask_kernel fabric_mask_named(const char* name)
    const char* fabric_mask_fastest()
    uint32_t fabric_mask_rotate(uint32_t key, size_t offset)
    void fabric_mask_short(uint8_t* dst, const uint8_t* src, size_t n, uint32_t key)


# --- masking ------------------------------------------------------------------------------------------------

cdef fabric_mask_kernel kernel = fabric_mask_named(fabric_mask_fastest())


def select_kernel(name=None):
    """Mask long payloads with the kernel called `name`, None for the fastest; return the one in use.

    For tests and benchmarks. Raises ValueError for a kernel this processor or build does not have.
    """
    global kernel
    cdef bytes wanted = fabric_mask_fastest() if name is None else name.encode()
    cdef fabric_mask_kernel found = fabric_mask_named(wanted)
    if found == NULL:
        raise ValueError(f"there is no kernel {name!r} here")
    kernel = found
    return wanted.decode()


cdef void apply_mask(uint8_t* dst, const uint8_t* src, size_t n, uint32_t key, size_t offset) noexcept nogil:
    key = fabric_mask_rotate(key, offset)
    if n < FABRIC_MASK_LONG:
        fabric_mask_short(dst, src, n, key)
    else:
        kernel(dst, src, n, key)


cdef int _read_key(object key, Py_ssize_t offset, uint32_t* out) except -1:
    cdef Py_buffer view
    if offset < 0:
        raise ValueError(f"offset is {offset}, must not be negative")
    PyObject_GetBuffer(key, &view, PyBUF_SIMPLE)
    try:
        if view.len != 4:
            raise ValueError(f"key is {view.len} bytes, must be 4")
        memcpy(out, view.buf, 4)
    finally:
        PyBuffer_Release(&view)
    return 0


def mask(data, key, Py_ssize_t offset=0) -> bytes:
    """Return `data` masked, or unmasked, which is the same, with the 4 bytes of `key`.

    `offset` is how many bytes of the same payload came before. Raises ValueError for a key of another size or
    a negative offset, BufferError or TypeError if `data` is not a contiguous bytes-like object.
    """
    cdef uint32_t word
    cdef Py_buffer view
    cdef bytes out
    _read_key(key, offset, &word)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        out = PyBytes_FromStringAndSize(NULL, view.len)
        apply_mask(<uint8_t*>PyBytes_AS_STRING(out), <const uint8_t*>view.buf, view.len, word, offset)
        return out
    finally:
        PyBuffer_Release(&view)


def mask_inplace(buffer, key, Py_ssize_t offset=0) -> None:
    """Like `mask`, but change `buffer`, which must be writable (BufferError otherwise)."""
    cdef uint32_t word
    cdef Py_buffer view
    _read_key(key, offset, &word)
    PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    try:
        apply_mask(<uint8_t*>view.buf, <const uint8_t*>view.buf, view.len, word, offset)
    finally:
        PyBuffer_Release(&view)


# --- keys ---------------------------------------------------------------------------------------------------

cdef enum:
    POOL = 1024  # keys from one call of os.urandom, so that its cost is spread thin

# Shared by all threads, and guarded by the GIL, which is held from a look at `pooled` to the change that follows.
cdef uint32_t pool[POOL]
cdef size_t pooled = 0


cdef int _refill() except -1:
    global pooled
    cdef bytes fresh = os.urandom(sizeof(pool))
    memcpy(pool, PyBytes_AS_STRING(fresh), sizeof(pool))
    pooled = POOL
    return 0


def _drop_pool():
    global pooled
    pooled = 0


# Otherwise parent and child would go on with the same keys.
os.register_at_fork(after_in_child=_drop_pool)


cdef uint32_t next_key() except? 0:
    global pooled
    if pooled == 0:
        _refill()
    pooled -= 1
    return pool[pooled]


def random_key() -> bytes:
    """Four bytes nobody can predict, from a pool that os.urandom fills; never the same pool after a fork."""
    cdef uint32_t key = next_key()
    return PyBytes_FromStringAndSize(<char*>&key, 4)
