"""What a buffer holds, and its two marks: `is_active` begins at the high one and ends at the low one.

Owns two counts, messages and bytes. In C, since a signal handler of the application may send: in Python it would come
between the reading of a count and its writing, and one of the two changes would be lost.
"""

cpdef enum:
    # What `add_if_room` answers.
    FULL = 0
    COUNTED = 1
    BEGAN = 2                    # counted, and `is_active` begins with it


cdef class Watermarks:
    """Counts messages and bytes within limits, and tells when the marks are passed.

    Args:
        max_messages, max_bytes: the limits.
        high, low: the marks, as fractions of the limits.
    """

    def __init__(self, Py_ssize_t max_messages, Py_ssize_t max_bytes, double high, double low):
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._high = high
        self._low = low

    def __reduce__(self):
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object")

    cpdef double level(self) noexcept:
        """The higher of both counts, over its limit."""
        return max(self.messages / <double>max(self._max_messages, 1), self.bytes / <double>max(self._max_bytes, 1))

    cpdef bint fits(self, Py_ssize_t size) noexcept:
        """Is there room for one message more, of `size` bytes? One that is larger than the limit fits alone."""
        if self.messages >= self._max_messages:
            return False
        return size <= self._max_bytes - self.bytes or self.messages == 0

    cpdef bint add(self, Py_ssize_t size) noexcept:
        """Count a message, whatever the limits say. Does `is_active` begin with it?"""
        self.messages += 1
        self.bytes += size
        if self.is_active or self.level() < self._high:
            return False
        self.is_active = True
        return True

    cpdef int add_if_room(self, Py_ssize_t size, bint unless_active=False) noexcept:
        """Count a message if the limits, or the marks too, allow it: FULL, COUNTED or BEGAN."""
        if (unless_active and self.is_active) or not self.fits(size):
            return FULL
        return BEGAN if self.add(size) else COUNTED

    cpdef bint remove(self, Py_ssize_t size) except? -1:
        """Take a message off the counts. Does `is_active` end with it? ValueError: it was not counted."""
        if self.messages < 1 or self.bytes < size:
            raise ValueError(
                f"release of 1 message of {size} bytes where {self.messages} messages"
                f" of {self.bytes} bytes are acquired"
            )
        self.messages -= 1
        self.bytes -= size
        if not self.is_active or self.level() > self._low:
            return False
        self.is_active = False
        return True
