"""Other readers of frames, which must read what `fabric_ext.frames.Decoder` has read, and find fault where it has.

`fabric.Frame.parse` reads one whole frame and knows no order of frames. The parser of `websockets` reads a connection.
"""

from __future__ import annotations

import pytest
from websockets.exceptions import PayloadTooBig
from websockets.protocol import Protocol, Side, State

from fabric.error import InvalidFrame, MessageTooLarge
from fabric.message import Frame
from fabric_ext.frames import Decoder, Fault
from support.decoded import Decoded, Found
from support.frames import BINARY, CLOSE, TEXT

# What one frame shows without those before it.
_ALONE = {Fault.BAD_OPCODE, Fault.LONG_LENGTH, Fault.CONTROL_FRAGMENTED, Fault.CONTROL_TOO_LONG}

# What `websockets` lets pass: lengths that are not in their shortest form (RFC 6455 §5.2), of control frames too, and
# any number of fragments.
_LENIENT = {Fault.LONG_LENGTH, Fault.CONTROL_TOO_LONG, Fault.TOO_MANY_FRAGMENTS}


def check_by_frame_parse(decoder: Decoder, decoded: Decoded, data: bytes) -> None:
    """`decoder` has made `decoded` of `data`."""
    compressed = False
    for found in decoded.frames:
        parsed = Frame.parse(data, max_size=decoder.max_compressed)
        assert parsed is not None
        frame, size = parsed
        if found.opcode in (TEXT, BINARY):
            compressed = frame.rsv1
        assert frame.masked == decoder.masked
        assert found == Found(frame.opcode, frame.payload, frame.fin, compressed and found.opcode < CLOSE)
        data = data[size:]
    if decoded.fault in _ALONE:
        with pytest.raises(InvalidFrame):
            Frame.parse(data)
    elif decoded.fault is Fault.TOO_LARGE:
        with pytest.raises(MessageTooLarge):
            Frame.parse(data, max_size=decoder.length - 1)
    elif decoded.fault is None and len(data) > 1:
        try:
            assert Frame.parse(data, max_size=decoder.max_compressed) is None
        except (InvalidFrame, MessageTooLarge):  # it judges a length before the mask's key is there
            assert len(data) < header_size(data)
        if decoded.begun is not None:
            parsed = Frame.parse(data + bytes(decoder.length))
            assert parsed is not None
            assert parsed[0].payload.startswith(decoded.begun.payload)


def header_size(data: bytes) -> int:
    """Bytes of the header that begins with the two of `data`."""
    return 2 + {126: 2, 127: 8}.get(data[1] & 127, 0) + (4 if data[1] & 128 else 0)


def check_by_websockets(decoder: Decoder, decoded: Decoded, data: bytes, *, whole: bool) -> None:
    """`decoder` has made `decoded` of `data`, whose frames are all `whole`, or maybe not: they read no other ones.

    They know no RSV1 here, and go no further than a close frame, whose body is not ours to judge.
    """
    assert not decoder.compressing
    side = Side.SERVER if decoder.masked else Side.CLIENT
    protocol = Protocol(side, state=State.OPEN, max_size=decoder.max_message_size)
    protocol.receive_data(data)
    theirs = [
        Found(int(frame.opcode), bytes(frame.data), frame.fin, frame.rsv1)
        for frame in protocol.events_received()
        if hasattr(frame, "opcode")
    ]
    fault = protocol.parser_exc
    ours = decoded.frames
    closed = next((at for at, frame in enumerate(ours) if frame.opcode == CLOSE), None)
    ours = ours[:closed]
    if isinstance(fault, PayloadTooBig) and len(theirs) < len(ours) and ours[len(theirs)].opcode >= CLOSE:
        ours = ours[: len(theirs)]  # they count a control frame as part of the message that it interrupts
        closed = len(ours)
    assert theirs[: len(ours)] == ours
    if closed is not None or decoded.fault in _LENIENT:
        return
    assert len(theirs) == len(ours)
    if decoded.fault is None:  # they judge a length before the mask's key is there
        assert fault is None or (isinstance(fault, PayloadTooBig) and not whole)
    elif whole:
        assert fault is not None
