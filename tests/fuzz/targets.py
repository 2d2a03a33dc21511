"""What is fuzzed: functions of bytes that return, or raise what nobody documents.

Each takes what a peer may send apart, and looks at what came out of it: nothing may fail later, and what can be
written again must come out the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable

from fabric._handshake.proxy_header import MAX_HEADER, BadProxyHeader, parse_proxy_header
from fabric._handshake.rules import Rejection, check_response, check_upgrade, malformed_response, rejection_of
from fabric._http.messages import Request, headers_of, response_of
from fabric._http.url import Url
from fabric.compression import Decompressor, accept_answer, answer_offers
from fabric.config import CompressionConfig
from fabric.error import (
    CompressionError,
    HandshakeFailed,
    InvalidFrame,
    InvalidHeader,
    InvalidSubprotocol,
    JsonError,
    MessageTooLarge,
)
from fabric.headers import parse_items
from fabric.message import Frame, Message
from fabric.subprotocol import SubprotocolList
from fabric_ext.frames import Decoder
from fabric_ext.histogram import Histogram
from fabric_ext.http_head import RequestHead, ResponseHead
from fuzz import script
from fuzz.receiver import LIMIT, Model, receive
from support import http_reference
from support.decoded import decode_pieces
from support.other_readers import check_by_frame_parse, check_by_websockets

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
CONFIGS = (
    CompressionConfig(),
    CompressionConfig(server_max_window_bits=15, client_max_window_bits=15),
    CompressionConfig(algorithm="zstd", zstd_dictionary=b"a dictionary"),
    CompressionConfig(enabled=False),
)


def lines_of(data: bytes) -> list[str]:
    return data.decode("latin-1").split("\n")


def frames(data: bytes) -> None:
    """Bytes at a connection, in reads of a size that the first byte says."""
    if not data:
        return
    size, data = data[0] + 1, data[1:]
    expected = Model().read(data)
    got = asyncio.run(receive([data[at : at + size] for at in range(0, len(data), size)]))
    assert got.messages == expected.messages
    assert got.pongs == expected.pongs[: len(got.pongs)]
    assert got.codes <= expected.codes


def compressed_frames(data: bytes) -> None:
    """The same where compression was agreed on; `receive` checks that what is answered is well-formed."""
    got = asyncio.run(receive([data], compressed=True))
    assert all(len(message) <= LIMIT for _, message in got.messages)


def decoder(data: bytes) -> None:
    """A stream of frames that `data` writes, in every cut, and as two others read it."""
    stream = script.written_by(data)

    def new() -> Decoder:
        return Decoder(
            masked=stream.masked,
            compressing=stream.compressing,
            max_message_size=script.LIMIT,
            max_fragments=script.MAX_FRAGMENTS,
        )

    reader = new()
    expected = decode_pieces(reader, [stream.data])
    assert decode_pieces(new(), [bytes([byte]) for byte in stream.data]) == expected
    for cut in range(len(stream.data)):
        assert decode_pieces(new(), [stream.data[:cut], stream.data[cut:]]) == expected
    check_by_frame_parse(reader, expected, stream.data)
    if not stream.compressing:
        check_by_websockets(reader, expected, stream.data, whole=stream.whole)


def frame(data: bytes) -> None:
    try:
        found = Frame.parse(data, max_size=1000)
    except (InvalidFrame, MessageTooLarge):
        return
    if found is not None:
        parsed, size = found
        again = Frame.parse(parsed.encode())
        assert again is not None
        assert size <= len(data)
        assert again[0].payload == parsed.payload
        assert (again[0].opcode, again[0].fin, again[0].rsv1) == (parsed.opcode, parsed.fin, parsed.rsv1)


def request(data: bytes) -> None:
    """The head of a request, as a reference in plain Python reads it, and what is made of it."""
    http_reference.check_request(data)
    head = RequestHead()
    answer = None
    if head.feed(data + b"\r\n\r\n"):
        parsed = Request(head.data)
        assert len(headers_of(head.data)) == len(parsed.headers) == head.count
        assert isinstance(parsed.path + parsed.method + parsed.target + repr(parsed), str)
        assert isinstance(parsed.query, dict)
        try:
            check_upgrade(head)
        except Rejection as rejection:
            answer = rejection.response
    elif head.fault:
        answer = rejection_of(head.fault, head.wrong).response
    if answer is not None:
        assert 400 <= answer.status < 600
        assert answer.encode().startswith(b"HTTP/1.1 ")


def response(data: bytes) -> None:
    """The same for the head of a response."""
    http_reference.check_response(data)
    head = ResponseHead()
    if head.feed(data + b"\r\n\r\n"):
        repr(headers_of(head.data))
        with contextlib.suppress(HandshakeFailed):
            check_response(head, KEY)
            assert response_of(head.data).status == 101
    else:
        assert "the server" in str(malformed_response(head, "the server"))


def offers(data: bytes) -> None:
    for config in CONFIGS:
        try:
            agreement = answer_offers(lines_of(data), config)
        except InvalidHeader:
            return
        if agreement is not None:
            assert len(parse_items("Sec-WebSocket-Extensions", [str(agreement)])) == 1
            agreement.codec(config, "server").encode(b"it works")


def answers(data: bytes) -> None:
    for config in CONFIGS:
        with contextlib.suppress(HandshakeFailed):
            agreement = accept_answer(lines_of(data), config)
            if agreement is not None:
                agreement.codec(config, "client").encode(b"it works")


def subprotocols(data: bytes) -> None:
    try:
        parsed = SubprotocolList.parse(lines_of(data))
    except (InvalidSubprotocol, InvalidHeader):
        return
    assert SubprotocolList.parse([str(parsed)]) == parsed


def url(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        Url.parse("wss://user:secret@example.com/a/b?c").join(text)
    try:
        parsed = Url.parse(text)
    except ValueError:
        return
    again = Url.parse(parsed.full)
    assert (again.host, again.port, again.resource) == (parsed.host, parsed.port, parsed.resource)
    assert parsed.resource.isascii()
    assert not set(parsed.resource + parsed.authority) & set(" \r\n\t\0")


def inflate(data: bytes) -> None:
    for config in CONFIGS[1:3]:
        decompressor = Decompressor(config, max_message_size=1000)
        with contextlib.suppress(CompressionError, MessageTooLarge):
            for half in (data[: len(data) // 2], data[len(data) // 2 :]):
                assert len(decompressor.decompress(half)) <= 1000


def json(data: bytes) -> None:
    with contextlib.suppress(JsonError):
        Message.binary(data).parse_json(dict[str, list[int]])


def histogram(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        found = Histogram.decode(data)
        assert found.value_at_percentile(100) >= found.value_at_percentile(0)
        assert len(found.percentile_steps()) <= 75 * 5 + 1
        assert Histogram.decode(found.encode()) == found


def proxy_header(data: bytes) -> None:
    """What comes from a proxy before everything else."""
    with contextlib.suppress(BadProxyHeader):
        header = parse_proxy_header(data)
        if header is None:
            assert len(data) < MAX_HEADER
            return
        assert 0 < header.size <= min(len(data), MAX_HEADER)
        for end in range(header.size):
            assert parse_proxy_header(data[:end]) is None
        if header.source is not None:
            ipaddress.ip_address(header.source[0])
            assert 0 <= header.source[1] <= 0xFFFF


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (
        frames,
        compressed_frames,
        decoder,
        frame,
        request,
        response,
        offers,
        answers,
        subprotocols,
        url,
        inflate,
        json,
        histogram,
        proxy_header,
    )
}
