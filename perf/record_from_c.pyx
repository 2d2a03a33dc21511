"""What `micro_histogram.py` times from C: recording as the connection does, through the shipped `.pxd`."""

from libc.stdint cimport int64_t

from fabric_ext.histogram cimport Histogram


def record_range(Histogram histogram not None, int64_t loops, int64_t lowest, int64_t step, int64_t n):
    """Record `loops` values that walk over `lowest`, `lowest + step`, … in n steps, and begin again."""
    cdef int64_t i, value = lowest, end = lowest + step * n
    for i in range(loops):
        histogram.record(value)
        value += step
        if value >= end:
            value = lowest
