# cython: auto_pickle=False
"""The head of an HTTP/1.1 request or response (RFC 9112), read once and judged while it is read.

Owns the grammar of start lines and header lines, where the values stand in a head, and those rules of the opening
handshake (RFC 6455 §4.2.1) that need nothing but the head. Knows no socket and writes no sentence: what is wrong is a
`Fault`; `fabric._handshake.rules` has the words and the HTTP status for it.

A head is fed all that was received so far, again with each piece. Lines that were read are not read again, and what
cannot become a head any more is a fault at the byte that shows it, long before the end.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeASCII
from libc.string cimport strlen

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char* p, Py_ssize_t n, const char* errors)

cdef enum:
    MAX_METHOD = 32              # bytes; the longest registered one has 17
    MAX_SHOWN = 60               # bytes of what is wrong, kept to be shown
    KEY_SIZE = 24                # 16 bytes in base64

    # Classes of bytes; CR and LF are in none.
    TOKEN = 1                    # RFC 9110 §5.6.2
    VALUE = 2                    # RFC 9110 §5.5: no control characters but TAB
    TARGET = 4                   # of a request: neither controls nor blanks
    BASE64 = 8                   # without the padding

MAX_HEADERS = MAX_LINES

cdef const char* VERSION = b"HTTP/#.#\r\n"       # the end of a request line; # is a digit

cdef uint8_t[256] CLASS
cdef uint8_t[256] LOWER          # the byte in lower case, where it is an ASCII letter


cdef int fill_tables() except -1:
    cdef int c
    for c in range(256):
        CLASS[c] = 0
        LOWER[c] = c
        if 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122:
            CLASS[c] |= TOKEN | BASE64
        if c == 9 or (c >= 32 and c != 127):
            CLASS[c] |= VALUE
        if c > 32 and c != 127:
            CLASS[c] |= TARGET
        if 65 <= c <= 90:
            LOWER[c] = c + 32
    for c in b"!#$%&'*+-.^_`|~":
        CLASS[c] |= TOKEN
    for c in b"+/":
        CLASS[c] |= BASE64
    return 0


fill_tables()


cdef inline bint is_digit(uint8_t c) noexcept:
    return 48 <= c <= 57


cdef inline bint is_blank(uint8_t c) noexcept:
    return c == 32 or c == 9


cdef inline bint equal(const uint8_t* p, const char* text, Py_ssize_t n) noexcept:
    """Are the `n` bytes at `p` those at `text`, but for the case of ASCII letters?"""
    cdef Py_ssize_t i
    for i in range(n):
        if LOWER[p[i]] != LOWER[<uint8_t>text[i]]:
            return False
    return True


cdef int in_list(const uint8_t* p, const uint8_t* end, const char* token, Py_ssize_t size) noexcept:
    """Is `token` an element of the list from `p` to `end` (RFC 9110 §5.6.1)? -1: a quoted string in it does not end."""
    cdef int found = 0
    cdef const uint8_t* first
    cdef const uint8_t* last
    while True:
        first = p
        while p < end and p[0] != b",":
            if p[0] == b'"':
                p += 1
                while p < end and p[0] != b'"':
                    p += 2 if p[0] == b"\\" else 1
                if p >= end:
                    return -1
            p += 1
        last = p
        while first < last and is_blank(first[0]):
            first += 1
        while first < last and is_blank((last - 1)[0]):
            last -= 1
        if last - first == size and equal(first, token, size):
            found = 1
        if p == end:
            return found
        p += 1


cdef class Head:
    """What the heads of requests and responses have in common."""

    def feed(self, bytes buffer not None):
        """Read on in `buffer`, all that was received so far: what was fed before, and more.

        Returns:
            The offset of what follows the head; 0 when the head is not complete, or cannot be (`fault`).
        """
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(buffer)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(buffer)
        cdef Py_ssize_t size
        if self.fault or self.data is not None or n < self._begin + self._at:
            return 0
        if self._at == 0:
            self._begin = self._skip_empty_lines(p, n)
        p += self._begin
        n -= self._begin
        if self._at == 0:
            self._at = self._read_start_line(p, n)
            if self._at == 0:
                return 0
        while self._at < n and p[self._at] != b"\r":
            size = self._read_header_line(p + self._at, n - self._at)
            if size == 0:
                return 0
            self._at += size
        if n - self._at < 2:
            return 0
        if p[self._at + 1] != b"\n":
            return self._fail(BAD_HEADER, p + self._at, n - self._at)
        self.data = buffer[self._begin : self._begin + self._at - 2]
        self.fault = self._check(p)
        return 0 if self.fault else self._begin + self._at + 2

    cdef Py_ssize_t _skip_empty_lines(self, const uint8_t* p, Py_ssize_t n) noexcept:
        """The offset of the start line."""
        return 0

    cdef Py_ssize_t _read_start_line(self, const uint8_t* p, Py_ssize_t n) except -1:
        """Read the first line. Returns its length with CR LF; 0 when more of it is needed, or it has a fault."""
        raise NotImplementedError

    cdef Py_ssize_t _read_header_line(self, const uint8_t* p, Py_ssize_t n) except -1:
        """The same for a header line (RFC 9112 §5). Lines that are folded are refused (§5.2)."""
        cdef Py_ssize_t colon = 0, value, end, next_line
        cdef Line* line
        while colon < n and CLASS[p[colon]] & TOKEN:
            colon += 1
        if colon == n:
            return 0
        if colon == 0 or p[colon] != b":":
            return self._fail(BAD_HEADER, p, n)
        value = colon + 1
        while value < n and is_blank(p[value]):
            value += 1
        end = value
        while end < n and CLASS[p[end]] & VALUE:
            end += 1
        if end == n or (end == n - 1 and p[end] == b"\r"):
            return 0
        if p[end] != b"\r" or p[end + 1] != b"\n":
            return self._fail(BAD_HEADER, p, n)
        if self.count == MAX_LINES:
            return self._fail(TOO_MANY_HEADERS, NULL, 0)
        next_line = end + 2
        while end > value and is_blank(p[end - 1]):
            end -= 1
        line = &self._lines[self.count]
        line.name = <uint32_t>self._at
        line.colon = <uint32_t>(self._at + colon)
        line.value = <uint32_t>(self._at + value)
        line.end = <uint32_t>(self._at + end)
        self.count += 1
        return next_line

    cdef int _check(self, const uint8_t* p) noexcept:
        """The Fault of a head that is whole; `p` is its start line."""
        return NO_FAULT

    cdef Py_ssize_t _fail(self, int fault, const uint8_t* p, Py_ssize_t n) except -1:
        """Set `fault`, and what the line at `p` begins with."""
        cdef Py_ssize_t size = 0
        self.fault = fault
        if p != NULL:
            while size < n and size < MAX_SHOWN and p[size] != b"\r" and p[size] != b"\n" \
                    and (fault != BAD_HEADER or p[size] != b":"):
                size += 1
            self.wrong = (<const char*>p)[:size]
        return 0

    # -- the headers

    def get_all(self, str name not None):
        """The values of all lines with the header `name`, in order; its case does not matter.

        Bytes that are not UTF-8 are lone surrogates, as in a `HeaderMap`.
        """
        cdef list values = []
        cdef Py_ssize_t size = 0
        cdef const char* wanted = PyUnicode_AsUTF8AndSize(name, &size)
        cdef const char* p
        cdef int i
        if self.data is not None:
            p = PyBytes_AS_STRING(self.data)
            i = self._next(<const uint8_t*>p, wanted, size, 0)
            while i >= 0:
                values.append(PyUnicode_DecodeUTF8(
                    p + self._lines[i].value, self._lines[i].end - self._lines[i].value, "surrogateescape"
                ))
                i = self._next(<const uint8_t*>p, wanted, size, i + 1)
        return values

    def has(self, str name not None):
        """Is there a line with the header `name`?"""
        cdef Py_ssize_t size = 0
        cdef const char* wanted = PyUnicode_AsUTF8AndSize(name, &size)
        if self.data is None:
            return False
        return self._next(<const uint8_t*>PyBytes_AS_STRING(self.data), wanted, size, 0) >= 0

    def has_token(self, str name not None, str token not None):
        """Does the list-valued header `name` hold `token`, over all its lines? Case does not matter.

        Firefox sends `Connection: keep-alive, Upgrade`. A list that is malformed holds nothing.
        """
        cdef bytes wanted = name.encode(), sought = token.encode()
        if self.data is None:
            return False
        return self._has_token(<const uint8_t*>PyBytes_AS_STRING(self.data), wanted, sought)

    cdef int _next(self, const uint8_t* p, const char* name, Py_ssize_t size, int at) noexcept:
        """The number of the first line, from `at` on, with the header `name`; -1 if there is none."""
        cdef int i
        for i in range(at, self.count):
            if self._lines[i].colon - self._lines[i].name == size and equal(p + self._lines[i].name, name, size):
                return i
        return -1

    cdef int _only(self, const uint8_t* p, const char* name) noexcept:
        """The number of the line with the header `name`; -1 if there is none, or several."""
        cdef Py_ssize_t size = strlen(name)
        cdef int i = self._next(p, name, size, 0)
        return -1 if i < 0 or self._next(p, name, size, i + 1) >= 0 else i

    cdef bint _has_token(self, const uint8_t* p, const char* name, const char* token) noexcept:
        cdef Py_ssize_t size = strlen(name)
        cdef int found = 0, one
        cdef int i = self._next(p, name, size, 0)
        while i >= 0:
            one = in_list(p + self._lines[i].value, p + self._lines[i].end, token, strlen(token))
            if one < 0:
                return False
            found |= one
            i = self._next(p, name, size, i + 1)
        return found != 0


cdef class RequestHead(Head):
    """The head of a request: GET or HEAD, of HTTP/1, without a body, with one `Host` (RFC 9112 §3.2)."""

    cdef Py_ssize_t _skip_empty_lines(self, const uint8_t* p, Py_ssize_t n) noexcept:
        cdef Py_ssize_t at = self._begin
        while n - at > 1 and p[at] == b"\r" and p[at + 1] == b"\n":
            at += 2                                            # a server ignores some: RFC 9112 §2.2
        return at

    cdef Py_ssize_t _read_start_line(self, const uint8_t* p, Py_ssize_t n) except -1:
        cdef Py_ssize_t method = 0, target, i, k
        cdef char expected
        if n == 1 and p[0] == b"\r":
            return 0
        while method < n and method <= MAX_METHOD and CLASS[p[method]] & TOKEN:
            method += 1
        if method == n and method <= MAX_METHOD:
            return 0
        if method == 0 or method > MAX_METHOD or p[method] != b" ":
            return self._fail(BAD_START_LINE, p, n)
        target = method + 1
        i = target
        while i < n and CLASS[p[i]] & TARGET:
            i += 1
        if i == n:
            return 0
        if i == target or p[i] != b" ":
            return self._fail(BAD_START_LINE, p, n)
        i += 1
        for k in range(<Py_ssize_t>strlen(VERSION)):
            if i + k == n:
                return 0
            expected = VERSION[k]
            if not (is_digit(p[i + k]) if expected == b"#" else p[i + k] == <uint8_t>expected):
                return self._fail(BAD_START_LINE, p, n)
        self.is_head = method == 4 and p[:4] == b"HEAD"
        if not self.is_head and not (method == 3 and p[:3] == b"GET"):
            return self._fail(BAD_METHOD, p, method)
        if p[i + 5] != b"1":
            return self._fail(BAD_VERSION, NULL, 0)
        self._minor = p[i + 7] - 48
        return i + strlen(VERSION)

    cdef int _check(self, const uint8_t* p) noexcept:
        cdef int i
        cdef Py_ssize_t k
        if self._minor != 0 and self._only(p, "host") < 0:
            return BAD_HOST
        if self._next(p, "transfer-encoding", 17, 0) >= 0:
            return HAS_BODY
        i = self._next(p, "content-length", 14, 0)
        while i >= 0:
            for k in range(self._lines[i].value, self._lines[i].end):
                if p[k] != b"0":
                    return HAS_BODY
            i = self._next(p, "content-length", 14, i + 1)
        return NO_FAULT

    def check_upgrade(self):
        """Is this a valid opening handshake (RFC 6455 §4.2.1)? The Fault, or NO_FAULT; then `key` is set."""
        cdef const uint8_t* p
        cdef int version, key
        cdef Py_ssize_t k
        if self.data is None:
            return NO_UPGRADE
        p = <const uint8_t*>PyBytes_AS_STRING(self.data)
        if not self._has_token(p, "upgrade", "websocket") or not self._has_token(p, "connection", "upgrade"):
            return NO_UPGRADE
        if self._minor == 0 or self.is_head:
            return BAD_UPGRADE_REQUEST
        version = self._only(p, "sec-websocket-version")
        if version < 0 or self._lines[version].end - self._lines[version].value != 2 \
                or p[self._lines[version].value] != b"1" or p[self._lines[version].value + 1] != b"3":
            return BAD_WEBSOCKET_VERSION
        key = self._only(p, "sec-websocket-key")
        if key < 0 or self._lines[key].end - self._lines[key].value != KEY_SIZE:
            return BAD_KEY
        p += self._lines[key].value
        for k in range(KEY_SIZE - 2):
            if not CLASS[p[k]] & BASE64:
                return BAD_KEY
        if p[KEY_SIZE - 2] != b"=" or p[KEY_SIZE - 1] != b"=":
            return BAD_KEY
        self.key = PyUnicode_DecodeASCII(<const char*>p, KEY_SIZE, NULL)
        return NO_FAULT


cdef class ResponseHead(Head):
    """The head of a response: of HTTP/1, with a status of three digits and any reason."""

    cdef Py_ssize_t _read_start_line(self, const uint8_t* p, Py_ssize_t n) except -1:
        cdef const char* form = b"HTTP/1.# ###"
        cdef Py_ssize_t k
        for k in range(<Py_ssize_t>strlen(form)):
            if k == n:
                return 0
            if not (is_digit(p[k]) if form[k] == b"#" else p[k] == <uint8_t>form[k]):
                return self._fail(BAD_START_LINE, p, n)
        k = strlen(form)
        if k < n and p[k] == b" ":
            while k < n and CLASS[p[k]] & VALUE:
                k += 1
        if k == n or (k == n - 1 and p[k] == b"\r"):
            return 0
        if p[k] != b"\r" or p[k + 1] != b"\n":
            return self._fail(BAD_START_LINE, p, n)
        self.status = 100 * (p[9] - 48) + 10 * (p[10] - 48) + p[11] - 48
        return k + 2
