"""Every exception that `fabric` raises on purpose.

    Error                                    Exception
     ├── ConnectionFailed                    ConnectionError                 retry, reconnect
     ├── ConnectionClosed                    ConnectionError                 retry, reconnect
     ├── ReconnectTimeout                    ConnectionError, TimeoutError
     ├── HandshakeFailed                     ConnectionError
     │    └── AuthenticationFailed
     ├── Timeout                             TimeoutError                    retry, reconnect
     ├── Io                                  OSError                         retry, reconnect
     ├── Tls                                 OSError                         retry
     ├── BackpressureTimeout                 TimeoutError
     ├── BufferFull
     ├── RateLimitExceeded
     ├── ConnectionLimitExceeded
     ├── InvalidFrame                        ValueError
     ├── MessageTooLarge                     ValueError
     ├── Utf8Error                           UnicodeError
     ├── CompressionError                    ValueError
     ├── JsonError                           ValueError
     ├── InvalidHeader                       ValueError
     ├── InvalidSubprotocol                  ValueError
     ├── SubprotocolNegotiationFailed
     ├── InvalidState                        RuntimeError
     └── NotSupported                        NotImplementedError

The second column is the builtin that each class also is, so that `except OSError` and `except ValueError`
mean what they usually do (ConnectionError and TimeoutError are OSErrors). The third tells where the class
attributes `is_retryable` (the same call may succeed later) and `should_reconnect` (a new connection may help)
are true.

All classes can be copied and pickled, and keep their attributes. This module imports nothing of `fabric`,
formats sentences and decides nothing: which close codes and HTTP statuses are final is the client's table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

__all__ = [
    "AuthenticationFailed",
    "BackpressureTimeout",
    "BufferFull",
    "CompressionError",
    "ConnectionClosed",
    "ConnectionFailed",
    "ConnectionLimitExceeded",
    "Error",
    "HandshakeFailed",
    "InvalidFrame",
    "InvalidHeader",
    "InvalidState",
    "InvalidSubprotocol",
    "Io",
    "JsonError",
    "MessageTooLarge",
    "NotSupported",
    "RateLimitExceeded",
    "ReconnectTimeout",
    "SubprotocolNegotiationFailed",
    "Timeout",
    "Tls",
    "Utf8Error",
]

# RFC 6455 §7.4.1 and the IANA WebSocket Close Code Number Registry.
CLOSE_CODE_NAMES: Mapping[int, str] = {
    1000: "normal closure",
    1001: "going away",
    1002: "protocol error",
    1003: "unsupported data",
    1005: "no status received",
    1006: "abnormal closure",
    1007: "invalid payload data",
    1008: "policy violation",
    1009: "message too big",
    1010: "mandatory extension",
    1011: "internal error",
    1012: "service restart",
    1013: "try again later",
    1014: "bad gateway",
    1015: "TLS handshake failed",
}


def close_code_name(code: int) -> str:
    """The registered name of a close code, or the range it belongs to (RFC 6455 §7.4.2)."""
    if code in CLOSE_CODE_NAMES:
        return CLOSE_CODE_NAMES[code]
    if 3000 <= code < 4000:
        return "registered"
    if 4000 <= code < 5000:
        return "private use"
    return "unknown"


def _quoted(value: object) -> str:
    """`value` as it may stand in a message: control characters escaped, and of bounded length."""
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:150]}... ({len(text)} characters)"


class Error(Exception):
    """Base of every error here. `str(error)` is one sentence: the thing, the value, the limit."""

    is_retryable: ClassVar[bool] = False
    should_reconnect: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, ...]:
        # The constructors take more than the sentence in `args`, so copies are made without calling them.
        state = dict(self.__dict__)
        if isinstance(self, OSError) and self.errno is not None:
            state["errno"] = self.errno  # lives in a C field, not in the dict
        return _rebuild, (type(self), self.args), state


def _rebuild(cls: type[Error], args: tuple[Any, ...]) -> Error:
    error = cls.__new__(cls)
    error.args = args
    return error


# Connections


class ConnectionFailed(Error, ConnectionError):
    """No connection could be made: name not found, refused, unreachable, closed before it answered.

    Args:
        message: what failed, and to whom.
        url: the address tried, without credentials.
    """

    is_retryable = True
    should_reconnect = True

    def __init__(self, message: str, *, url: str | None = None) -> None:
        super().__init__(message)
        self.url = url


class ConnectionClosed(Error, ConnectionError):
    """The connection is closed, and what was asked for needs an open one.

    Args:
        code: close code (RFC 6455 §7.4); 1005 where the peer gave none, 1006 where no close frame came.
        reason: the text of the close frame.
        by: which side closed first: "remote", "local", or "transport" (lost without a close frame).
        clean: both close frames were exchanged (RFC 6455 §7.1.4).
    """

    is_retryable = True
    should_reconnect = True

    def __init__(
        self,
        code: int,
        reason: str = "",
        *,
        by: Literal["remote", "local", "transport"] = "remote",
        clean: bool = False,
    ) -> None:
        # One argument: two would become `errno` and `strerror` of the OSError this is.
        side = {"remote": "closed by the peer", "local": "closed by this side"}.get(by, "lost")
        why = f": {_quoted(reason)}" if reason else ""
        super().__init__(f"connection {side} with {code} ({close_code_name(code)}){why}")
        self.code = code
        self.reason = reason
        self.by = by
        self.clean = clean


class ReconnectTimeout(Error, ConnectionError, TimeoutError):
    """Reconnecting was given up; this client will not come back.

    Args:
        message: why it ended.
        attempts: connection attempts made since the connection was lost.
        undelivered: the messages accepted by `send` and never written, oldest first.
        cause: the last attempt's error; also `__cause__`.
    """

    def __init__(
        self,
        message: str,
        *,
        attempts: int,
        undelivered: Iterable[Any] = (),
        cause: BaseException | None = None,
    ) -> None:
        self.attempts = attempts
        self.undelivered = tuple(undelivered)
        self.cause = self.__cause__ = cause
        left = f", {len(self.undelivered)} messages undelivered" if self.undelivered else ""
        super().__init__(f"{message} (attempts: {attempts}{left})")


class Timeout(Error, TimeoutError):
    """An operation did not end in time.

    Args:
        what: the operation, as in "opening handshake".
        timeout: the time it had, in seconds.
    """

    is_retryable = True
    should_reconnect = True

    def __init__(self, what: str, timeout: float) -> None:
        super().__init__(f"{what} timed out after {timeout:g} s")
        self.what = what
        self.timeout = timeout


class Io(Error, OSError):
    """The operating system refused: address in use, file descriptors exhausted, read or write failed.

    Args:
        message: what failed.
        errno: the system's error number, as in the module `errno`.
    """

    is_retryable = True
    should_reconnect = True

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class Tls(Error, OSError):
    """TLS failed, or the peer's certificate is not accepted. As `ssl.SSLError` is, an OSError.

    Args:
        message: what failed, and why.
        reason: OpenSSL's name of the reason, as in "WRONG_VERSION_NUMBER"; "" if there is none.
        certificate_rejected: this end does not accept the peer's certificate.
    """

    is_retryable = True

    def __init__(self, message: str, *, reason: str = "", certificate_rejected: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.certificate_rejected = certificate_rejected


# The opening handshake


class HandshakeFailed(Error, ConnectionError):
    """The peer answered the opening handshake (RFC 6455 §4) with something else than an upgrade.

    Args:
        message: what was wrong with the answer.
        status: HTTP status, where there was one.
        headers: headers of the answer.
        body: its body, as far as it was read.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = body


class AuthenticationFailed(HandshakeFailed):
    """The server (401, 403) or the proxy (407) does not accept these credentials, or wants some.

    Args:
        challenge: the `WWW-Authenticate` or `Proxy-Authenticate` header (RFC 9110 §11.6.1), "" if absent.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        challenge: str = "",
    ) -> None:
        super().__init__(message, status=status, headers=headers, body=body)
        self.challenge = challenge


class SubprotocolNegotiationFailed(Error):
    """No subprotocol suits both sides (RFC 6455 §4.2.2), or the server chose one that was not offered.

    Args:
        message: what went wrong.
        offered: names the client offered, in its order of preference.
        supported: names the other side supports, or chose.
    """

    def __init__(self, message: str, offered: Iterable[str], supported: Iterable[str]) -> None:
        self.offered = tuple(offered)
        self.supported = tuple(supported)
        super().__init__(
            f"{message} (offered: {', '.join(self.offered) or 'none'};"
            f" supported: {', '.join(self.supported) or 'none'})"
        )


class InvalidSubprotocol(Error, ValueError):
    """A subprotocol name is not a token (RFC 6455 §4.1, RFC 9110 §5.6.2), or stands twice in a list."""

    def __init__(self, value: object) -> None:
        super().__init__(f"invalid subprotocol {_quoted(value)}: expected a unique name of token characters")
        self.value = value


class InvalidHeader(Error, ValueError):
    """A header cannot be sent, or was received in a form that RFC 9110 does not allow.

    Args:
        name: the header's name.
        message: what is wrong with it. Not the value: it may be a secret.
    """

    def __init__(self, name: object, message: str) -> None:
        super().__init__(f"invalid header {_quoted(name)}: {message}")
        self.name = name


# Limits


class MessageTooLarge(Error, ValueError):
    """A message, whole, reassembled or decompressed, passes the limit. On the wire: close code 1009.

    Args:
        size: bytes that the message has, or would have had next.
        limit: bytes allowed.
    """

    def __init__(self, size: int, limit: int, message: str | None = None) -> None:
        super().__init__(message or f"message of {size} bytes is over the limit of {limit} bytes")
        self.size = size
        self.limit = limit


class BufferFull(Error):
    """A message does not fit into the buffer, and the caller does not wait.

    Args:
        size: what the buffer holds now.
        limit: what it can hold.
        what: the unit of both.
    """

    def __init__(self, size: int, limit: int, what: str = "messages") -> None:
        super().__init__(f"buffer is full: {size} of {limit} {what}")
        self.size = size
        self.limit = limit
        self.what = what


class BackpressureTimeout(Error, TimeoutError):
    """The buffer did not drain in time, or another message in parts was not at its end in time.

    Args:
        timeout: the time waited, in seconds.
        level: how full the buffer still is, 0 to 1.
        what: what still stands in the way, where it is not the buffer.
    """

    def __init__(self, timeout: float, level: float, *, what: str | None = None) -> None:
        super().__init__(f"{what or f'buffer is still {level:.0%} full'} after {timeout:g} s")
        self.timeout = timeout
        self.level = level


class RateLimitExceeded(Error):
    """A rate limit does not allow this now.

    Args:
        what: what is limited, as in "messages".
        retry_after: seconds until it would be allowed.
    """

    def __init__(self, what: str, retry_after: float) -> None:
        super().__init__(f"rate limit of {what} exceeded: retry after {retry_after:.3f} s")
        self.what = what
        self.retry_after = retry_after


class ConnectionLimitExceeded(Error):
    """There are as many connections as allowed.

    Args:
        limit: connections allowed.
        what: which are counted, as in "connections to ws://host".
    """

    def __init__(self, limit: int, what: str = "connections") -> None:
        super().__init__(f"limit of {limit} {what} reached")
        self.limit = limit
        self.what = what


# What is in the frames


class InvalidFrame(Error, ValueError):
    """A frame, or its place among the others, breaks RFC 6455 §5.

    Args:
        message: which rule.
        code: the close code that answers it (RFC 6455 §7.4.1).
    """

    def __init__(self, message: str, *, code: int = 1002) -> None:
        super().__init__(message)
        self.code = code


class Utf8Error(Error, UnicodeError):
    """Text that is not UTF-8 (RFC 6455 §8.1). On the wire: close code 1007."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class CompressionError(Error, ValueError):
    """Compressed data is corrupt, or an extension offer or answer breaks RFC 7692."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class JsonError(Error, ValueError):
    """A message is not JSON, or not of the type asked for.

    Args:
        message: what is wrong.
        path: where, as in "$.orders[3].price"; "" for the whole document.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(f"{message} (at {path})" if path else message)
        self.path = path


# How the library is used


class InvalidState(Error, RuntimeError):
    """A call that this object does not allow now, such as a second `recv` while one waits.

    Args:
        message: the call, and why not.
        state: the state the object is in.
    """

    def __init__(self, message: str, *, state: object = None) -> None:
        super().__init__(message if state is None else f"{message} (state: {state})")
        self.state = state


class NotSupported(Error, NotImplementedError):
    """The platform, the transport or the peer cannot do this."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
