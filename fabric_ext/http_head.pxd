from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    MAX_LINES = 128              # header lines of a head


cpdef enum Fault:
    NO_FAULT = 0
    # What cannot become a head, seen at the byte that shows it.
    BAD_START_LINE = 1
    BAD_METHOD = 2               # neither GET nor HEAD
    BAD_VERSION = 3              # not HTTP/1
    BAD_HEADER = 4
    TOO_MANY_HEADERS = 5
    # Of a whole request.
    BAD_HOST = 6                 # none, or several
    HAS_BODY = 7
    # Of a request to upgrade (RFC 6455 §4.2.1).
    NO_UPGRADE = 8
    BAD_UPGRADE_REQUEST = 9      # not a GET of HTTP/1.1
    BAD_WEBSOCKET_VERSION = 10
    BAD_KEY = 11


cdef struct Line:                # offsets, counted from the start line
    uint32_t name
    uint32_t colon
    uint32_t value               # without the blanks around it
    uint32_t end


cdef class Head:
    cdef readonly bytes data     # the whole head without its empty line; None until it is there
    cdef readonly int fault      # a Fault
    cdef readonly bytes wrong    # what the fault is about: a header's name, a method, the start of a line; or None
    cdef Py_ssize_t _begin       # offset of the start line in what is fed
    cdef Py_ssize_t _at          # of the line that is read next, counted from the start line; 0: that one
    cdef readonly int count      # header lines read so far
    cdef Line[MAX_LINES] _lines

    cdef Py_ssize_t _skip_empty_lines(self, const uint8_t* p, Py_ssize_t n) noexcept
    cdef Py_ssize_t _read_start_line(self, const uint8_t* p, Py_ssize_t n) except -1
    cdef Py_ssize_t _read_header_line(self, const uint8_t* p, Py_ssize_t n) except -1
    cdef int _check(self, const uint8_t* p) noexcept
    cdef Py_ssize_t _fail(self, int fault, const uint8_t* p, Py_ssize_t n) except -1
    cdef int _next(self, const uint8_t* p, const char* name, Py_ssize_t size, int at) noexcept
    cdef int _only(self, const uint8_t* p, const char* name) noexcept
    cdef bint _has_token(self, const uint8_t* p, const char* name, const char* token) noexcept


cdef class RequestHead(Head):
    cdef readonly bint is_head   # the method is HEAD
    cdef readonly str key        # Sec-WebSocket-Key, once check_upgrade() has found it valid; or None
    cdef int _minor              # of the version: HTTP/1.minor


cdef class ResponseHead(Head):
    cdef readonly int status     # 0 until the status line is there
