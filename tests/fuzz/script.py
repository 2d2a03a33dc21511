"""Streams of frames as the bytes of a fuzzer write them: any bytes are a script, and each of them counts.

So what a fuzzer changes is a frame, its order, its length or its mask, and not, nearly always, the first header.
"""

from __future__ import annotations

from dataclasses import dataclass

from support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, encode

LIMIT = 300  # bytes of a message
MAX_FRAGMENTS = 6
LONGEST = 1200  # bytes of a stream, but for its last frame

OPCODES = (TEXT, BINARY, CONTINUATION, CONTINUATION, PING, PONG, CLOSE)
SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 63, 64, 100, 124, 125, 126, 127, 128, 149, 150, 151, 255, 256, 299, 300, 301)
LENGTHS = (LIMIT + 1, 65_535, 65_536, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
FORMS = (2, 8)


@dataclass
class Script:
    """What came of it.

    Attributes:
        masked: it is for a server.
        compressing: RSV1 has a meaning.
        data: the stream.
        whole: it ends with a frame, and has nothing else in it.
    """

    masked: bool
    compressing: bool
    data: bytes
    whole: bool


def written_by(script: bytes) -> Script:
    """The stream that `script` writes.

    First a byte for both ends; then for each frame one for opcode, FIN and what is odd about it, one for its size,
    and, where it is odd, one that says how.
    """
    rest = list(script[::-1])

    def take() -> int:
        return rest.pop() if rest else 0

    ends = take()
    made = Script(masked=not ends & 1, compressing=bool(ends & 2), data=b"", whole=True)
    while rest and len(made.data) < LONGEST:
        first, size = take(), SIZES[take() % len(SIZES)]
        number = first & 7
        if number == len(OPCODES):  # anything at all
            made.data += bytes(take() for _ in range(size % 16))
            made.whole = False
            continue
        odd = take() if first & 0x10 else 0
        options: dict[str, int | bool | None] = {"fin": bool(first & 8), "mask": made.masked}
        opcode = OPCODES[number]
        if first & 0x20 and made.compressing:
            options["rsv"] = 4
        if odd & 1:
            options["rsv"] = odd >> 5
        if odd & 2:
            options["mask"] = not made.masked
        if odd & 4:
            opcode = odd >> 4
        if odd & 8:
            form = FORMS[odd >> 7]
            options["form"] = form
            if odd & 0x10:
                size, options["length"] = 0, LENGTHS[(odd >> 4) % len(LENGTHS)] % (1 << 8 * form)
                made.whole = made.whole and int(options["length"] or 0) > LIMIT
        payload = bytes((start * 7 + size) & 255 for start in range(size))
        key = bytes((first, size & 255, odd, 0x5A))
        made.data += encode(opcode, payload, key=key, **options)  # type: ignore[arg-type]
    return made
