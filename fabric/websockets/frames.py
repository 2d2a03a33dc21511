"""Opcodes, close codes, and what a frame and a close frame hold."""

from __future__ import annotations

import dataclasses
import enum
import os
import struct
from typing import Self

from fabric.websockets.exceptions import ProtocolError
from fabric.websockets.typing import BytesLike

__all__ = ["Close", "CloseCode", "Frame", "Opcode"]


class Opcode(enum.IntEnum):
    """What a frame is (RFC 6455 §5.2)."""

    CONT, TEXT, BINARY = 0, 1, 2
    CLOSE, PING, PONG = 8, 9, 10


CONT = Opcode.CONT
TEXT = Opcode.TEXT
BINARY = Opcode.BINARY
CLOSE = Opcode.CLOSE
PING = Opcode.PING
PONG = Opcode.PONG

DATA_OPCODES = CONT, TEXT, BINARY
CTRL_OPCODES = CLOSE, PING, PONG


class CloseCode(enum.IntEnum):
    """Why a connection is closed (RFC 6455 §7.4.1, and the IANA registry)."""

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS_RCVD = 1005
    ABNORMAL_CLOSURE = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


CLOSE_CODE_EXPLANATIONS: dict[int, str] = {
    CloseCode.NORMAL_CLOSURE: "OK",
    CloseCode.GOING_AWAY: "going away",
    CloseCode.PROTOCOL_ERROR: "protocol error",
    CloseCode.UNSUPPORTED_DATA: "unsupported data",
    CloseCode.NO_STATUS_RCVD: "no status received [internal]",
    CloseCode.ABNORMAL_CLOSURE: "abnormal closure [internal]",
    CloseCode.INVALID_DATA: "invalid frame payload data",
    CloseCode.POLICY_VIOLATION: "policy violation",
    CloseCode.MESSAGE_TOO_BIG: "message too big",
    CloseCode.MANDATORY_EXTENSION: "mandatory extension",
    CloseCode.INTERNAL_ERROR: "internal error",
    CloseCode.SERVICE_RESTART: "service restart",
    CloseCode.TRY_AGAIN_LATER: "try again later",
    CloseCode.BAD_GATEWAY: "bad gateway",
    CloseCode.TLS_HANDSHAKE: "TLS handshake failure [internal]",
}

# Those that may stand in a close frame, besides 3000 to 4999.
EXTERNAL_CLOSE_CODES = set(CloseCode) - {
    CloseCode.NO_STATUS_RCVD,
    CloseCode.ABNORMAL_CLOSURE,
    CloseCode.TLS_HANDSHAKE,
}

# Those of a normal end.
OK_CLOSE_CODES = {CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY, CloseCode.NO_STATUS_RCVD}


@dataclasses.dataclass
class Close:
    """Code and reason of a close frame."""

    code: CloseCode | int
    reason: str

    def __str__(self) -> str:
        if 3000 <= self.code < 4000:
            what = "registered"
        elif 4000 <= self.code < 5000:
            what = "private use"
        else:
            what = CLOSE_CODE_EXPLANATIONS.get(self.code, "unknown")
        return f"{self.code} ({what}) {self.reason}" if self.reason else f"{self.code} ({what})"

    @classmethod
    def parse(cls, data: BytesLike) -> Self:
        """Read the payload of a close frame.

        Raises:
            ProtocolError: it is too short, or its code may not be sent.
            UnicodeDecodeError: the reason is not UTF-8.
        """
        if not data:
            return cls(CloseCode.NO_STATUS_RCVD, "")
        if len(data) == 1:
            raise ProtocolError("close frame too short")
        close = cls(int.from_bytes(data[:2], "big"), bytes(data[2:]).decode())
        close.check()
        return close

    def serialize(self) -> bytes:
        """The payload of a close frame.

        Raises:
            ProtocolError: the code may not be sent.
        """
        self.check()
        return struct.pack("!H", self.code) + self.reason.encode()

    def check(self) -> None:
        """Raise ProtocolError for a code that may not be sent."""
        if self.code not in EXTERNAL_CLOSE_CODES and not 3000 <= self.code < 5000:
            raise ProtocolError("invalid status code")


@dataclasses.dataclass
class Frame:
    """One frame. It is a value: connections here do not make any."""

    opcode: Opcode
    data: BytesLike
    fin: bool = True
    rsv1: bool = False
    rsv2: bool = False
    rsv3: bool = False

    # Characters of the payload that `str(frame)` shows.
    MAX_LOG_SIZE = int(os.environ.get("WEBSOCKETS_MAX_LOG_SIZE", "75"))

    def __str__(self) -> str:
        data = bytes(self.data)
        usual = {TEXT: True, BINARY: False, CLOSE: True}.get(self.opcode)
        shown, is_text = self._shown(data) if data else ("''", usual)
        kind = "" if is_text == usual else "text" if is_text else "binary"
        size = f"{len(data)} byte{'' if len(data) == 1 else 's'}"
        return f"{self.opcode.name} {shown} [{', '.join(filter(None, (kind, size, '' if self.fin else 'continued')))}]"

    def _shown(self, data: bytes) -> tuple[str, bool]:
        """The payload for people, cut in the middle; and whether it is text."""
        try:
            if self.opcode is CLOSE:
                text, is_text = str(Close.parse(data)), True
            else:
                text = repr(data.decode("ascii" if self.opcode in CTRL_OPCODES else "utf-8"))
                is_text = "\\x" not in text
        except (ProtocolError, UnicodeDecodeError):
            text, is_text = "", False
        if not is_text:
            text = data.hex(" ")
        if len(text) > self.MAX_LOG_SIZE:
            third = self.MAX_LOG_SIZE // 3 - 1
            text = f"{text[: 2 * third]}...{text[-third:]}"
        return text, is_text

    def check(self) -> None:
        """Raise ProtocolError where the reserved bits are set, or a control frame is too long or not final."""
        if self.rsv1 or self.rsv2 or self.rsv3:
            raise ProtocolError("reserved bits must be 0")
        if self.opcode in CTRL_OPCODES:
            if len(self.data) > 125:
                raise ProtocolError("control frame too long")
            if not self.fin:
                raise ProtocolError("fragmented control frame")
