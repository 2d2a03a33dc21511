"""Messages and raw frames (RFC 6455 §5), as people import them.

Owns one thing: that the compiled types raise the errors of `fabric.error`. What the types do is in
`fabric_ext.message`.
"""

from __future__ import annotations

from typing import TypeAlias

from fabric.error import InvalidFrame, JsonError, MessageTooLarge, Utf8Error
from fabric_ext.message import Frame, Message, MessageType, bind_errors

__all__ = ["Frame", "Message", "MessageType", "Sendable"]

Sendable: TypeAlias = str | bytes | bytearray | memoryview | Message
"""What `send` takes as one message: text, bytes, or a `Message` of either."""

bind_errors(
    json_error=JsonError,
    utf8_error=Utf8Error,
    invalid_frame=InvalidFrame,
    message_too_large=MessageTooLarge,
)
