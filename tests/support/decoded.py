"""What a `fabric_ext.frames.Decoder` has made of bytes: whole frames, put together from its parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from fabric_ext.frames import Decoder, Fault
from support.frames import CLOSE

MOST_HELD = 2 + 4 + 125 - 1
"""Bytes: all but the last one of the longest control frame."""


class Found(NamedTuple):
    """A frame that was read to its end."""

    opcode: int
    payload: bytes
    fin: bool
    compressed: bool


@dataclass
class Decoded:
    """What came out.

    Attributes:
        frames: the whole ones.
        begun: what there is of the last one, if its payload is not all there.
        fault: why nothing can be read any more.
    """

    frames: list[Found] = field(default_factory=list)
    begun: Found | None = None
    fault: Fault | None = None

    def add(self, events: Iterable[object]) -> None:
        """Take what one `Decoder.read` has returned; parts must follow one another as they promise."""
        for event in events:
            assert self.fault is None, "nothing comes after a fault"
            if isinstance(event, Fault):
                assert event is not Fault.NO_FAULT
                self.fault = event
                continue
            assert isinstance(event, tuple)
            if len(event) == 2:
                opcode, payload = event
                assert opcode >= CLOSE
                assert self.begun is None, "a control frame inside a frame"
                self.frames.append(Found(opcode, payload, True, False))
                continue
            opcode, payload, fin, compressed, begins, ends = event
            assert opcode < CLOSE
            assert begins == (self.begun is None), "the first part begins, no other does"
            assert payload or begins, "an empty part tells nothing"
            if self.begun is not None:
                assert (opcode, fin, compressed) == (self.begun.opcode, self.begun.fin, self.begun.compressed)
                payload = self.begun.payload + payload
            found = Found(opcode, payload, fin, compressed)
            if ends:
                self.frames.append(found)
            self.begun = None if ends else found


def decode_pieces(decoder: Decoder, pieces: Iterable[bytes]) -> Decoded:
    """Have `decoder` read `pieces`, one read each."""
    decoded = Decoded()
    for piece in pieces:
        decoded.add(decoder.read(piece))
        assert decoder.held_bytes <= MOST_HELD
        if decoded.fault is not None:
            assert decoder.fault == decoded.fault
            assert decoder.read(b"more") == [decoded.fault], "a fault stays"
            break
    return decoded
