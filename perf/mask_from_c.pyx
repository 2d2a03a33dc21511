"""What `micro_mask.py` times from C. Addresses are of memory that the caller keeps alive."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from fabric_ext.mask cimport apply_mask

ctypedef size_t (*PicowsLoop)(uint8_t* src, size_t n, size_t start, uint32_t key, uint8_t* dst) noexcept nogil

# Through a pointer, so that the compiler does not see what is copied and leaves the call where it is.
cdef void* (*copy)(void* dst, const void* src, size_t n) noexcept nogil
copy = <void* (*)(void*, const void*, size_t) noexcept nogil>&memcpy


def repeat_copy(Py_ssize_t loops, size_t dst, size_t src, size_t n):
    for _ in range(loops):
        copy(<void*>dst, <const void*>src, n)


def repeat_mask(Py_ssize_t loops, size_t dst, size_t src, size_t n, uint32_t key):
    for _ in range(loops):
        apply_mask(<uint8_t*>dst, <const uint8_t*>src, n, key, 0)


def repeat_picows(Py_ssize_t loops, size_t function, size_t dst, size_t src, size_t n, uint32_t key):
    """`function` is the address of picows' vector loop; all addresses are multiples of 64."""
    for _ in range(loops):
        (<PicowsLoop>function)(<uint8_t*>src, n, 0, key, <uint8_t*>dst)
