"""permessage-deflate as the standard library's zlib does it (RFC 7692 §7.2): the other side of a test."""

from __future__ import annotations

import re
import zlib

TAIL = b"\x00\x00\xff\xff"


class Deflate:
    """What one side of a connection sends: use one object to pack, another to unpack.

    A window smaller than the sender's makes `unpack` fail: that is how a test knows that terms are kept.
    """

    def __init__(self, bits: int = 15, *, takeover: bool = True) -> None:
        self._bits = bits
        self._takeover = takeover
        self._start()

    def _start(self) -> None:
        self._packer = zlib.compressobj(9, zlib.DEFLATED, -self._bits)
        self._unpacker = zlib.decompressobj(-self._bits)

    def pack(self, data: bytes) -> bytes:
        payload = self._packer.compress(data) + self._packer.flush(zlib.Z_SYNC_FLUSH)
        if not self._takeover:
            self._start()
        return payload.removesuffix(TAIL)

    def unpack(self, payload: bytes) -> bytes:
        data = self._unpacker.decompress(payload + TAIL)
        if not self._takeover:
            self._start()
        return data


def agreed(answer: str, side: str) -> Deflate:
    """What `side`, "client" or "server", sends under the terms of a server's answer."""
    bits = re.search(rf"\b{side}_max_window_bits=(\d+)", answer)
    return Deflate(int(bits[1]) if bits else 15, takeover=f"{side}_no_context_takeover" not in answer)
