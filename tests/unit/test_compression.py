"""fabric.compression: negotiation against tables and `websockets` as oracle; the classes alone."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import NegotiationError
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    ServerPerMessageDeflateFactory,
)
from websockets.headers import build_extension, parse_extension

from fabric.compression import (
    Agreement,
    Compressor,
    Decompressor,
    accept_answer,
    answer_offers,
    make_offer,
)
from fabric.config import CompressionConfig
from fabric.error import CompressionError, HandshakeFailed, InvalidHeader, MessageTooLarge
from fabric_ext.deflate import DeflateCodec, ZstdCodec

WIDE = CompressionConfig(server_max_window_bits=15, client_max_window_bits=15)
DEFAULT = CompressionConfig()
DICTIONARY = b"the quick brown fox jumps over the lazy dog" * 9
ZSTD = CompressionConfig(algorithm="zstd", zstd_dictionary=DICTIONARY)

configs = st.builds(
    CompressionConfig,
    server_max_window_bits=st.integers(9, 15),
    client_max_window_bits=st.integers(9, 15),
    server_no_context_takeover=st.booleans(),
    client_no_context_takeover=st.booleans(),
    algorithm=st.sampled_from(["deflate", "zstd"]),
    zstd_dictionary=st.sampled_from([None, DICTIONARY, b"another one"]),
)

TEXT = [json.dumps({"type": "trade", "price": i * 37 % 1000, "size": i}).encode() for i in range(20)]


# What a client offers

PLAIN = "permessage-deflate; client_max_window_bits"


@pytest.mark.parametrize(
    ("config", "offer"),
    [
        (WIDE, PLAIN),
        (
            DEFAULT,
            f"permessage-deflate; server_max_window_bits=12; client_max_window_bits, {PLAIN}",
        ),
        (
            WIDE.with_server_no_context_takeover(True).with_client_no_context_takeover(True),
            PLAIN.replace(";", "; server_no_context_takeover; client_no_context_takeover;"),
        ),
        (
            WIDE.with_algorithm("zstd"),
            f"permessage-zstd; server_max_window_bits=15; client_max_window_bits=15, {PLAIN}",
        ),
        (DEFAULT.with_enabled(False), None),
    ],
)
def test_offers(config: CompressionConfig, offer: str | None) -> None:
    assert make_offer(config) == offer


def test_zstd_is_offered_only_on_demand() -> None:
    assert "zstd" not in str(make_offer(DEFAULT.with_zstd_dictionary(DICTIONARY)))
    assert "dictionary=" in str(make_offer(ZSTD))


# What a server answers


@pytest.mark.parametrize(
    ("offer", "config", "answer"),
    [
        ("permessage-deflate", WIDE, "permessage-deflate"),
        ("permessage-deflate; client_max_window_bits", WIDE, "permessage-deflate"),
        # RFC 7692 §7.1.2.1: a server may limit its own window unasked; §7.1.2.2: but not the client's.
        ("permessage-deflate", DEFAULT, "permessage-deflate; server_max_window_bits=12"),
        (
            "permessage-deflate; client_max_window_bits",
            DEFAULT,
            "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
        ),
        (
            "permessage-deflate; client_max_window_bits=10; server_max_window_bits=9",
            DEFAULT,
            "permessage-deflate; server_max_window_bits=9; client_max_window_bits=10",
        ),
        (
            "permessage-deflate; server_max_window_bits=8",
            WIDE,
            "permessage-deflate; server_max_window_bits=8",
        ),
        (
            'permessage-deflate; server_max_window_bits="10"; client_max_window_bits="8"',
            WIDE,
            "permessage-deflate; server_max_window_bits=10; client_max_window_bits=8",
        ),
        (
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            WIDE,
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        ),
        (
            "permessage-deflate",
            WIDE.with_server_no_context_takeover(True).with_client_no_context_takeover(True),
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        ),
        # §7.1.3, as offered with a fallback
        (
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
            WIDE,
            "permessage-deflate; server_max_window_bits=10",
        ),
        ("x-unknown; a=1, , permessage-deflate", WIDE, "permessage-deflate"),
        ("permessage-deflate; unknown, permessage-deflate", WIDE, "permessage-deflate"),
        ("permessage-zstd, permessage-deflate", WIDE, "permessage-deflate"),
        ("permessage-deflate", DEFAULT.with_enabled(False), None),
        ("x-webkit-deflate-frame", WIDE, None),
        ("", WIDE, None),
        # What must decline an offer (§7.1): unknown, out of range, repeated, with a value, without one.
        ("permessage-deflate; unknown=1", WIDE, None),
        ("permessage-deflate; server_max_window_bits", WIDE, None),
        ("permessage-deflate; server_max_window_bits=7", WIDE, None),
        ("permessage-deflate; server_max_window_bits=16", WIDE, None),
        ("permessage-deflate; server_max_window_bits=010", WIDE, None),
        ("permessage-deflate; client_max_window_bits=x", WIDE, None),
        ('permessage-deflate; client_max_window_bits=""', WIDE, None),
        ("permessage-deflate; server_no_context_takeover=1", WIDE, None),
        ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", WIDE, None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits=12", WIDE, None),
        ("permessage-deflate; dictionary=12", WIDE, None),
    ],
)
def test_answers(offer: str, config: CompressionConfig, answer: str | None) -> None:
    agreement = answer_offers([offer], config)
    assert (None if agreement is None else str(agreement)) == answer


def test_offers_may_be_spread_over_headers() -> None:
    lines = [
        "x-a, permessage-deflate; server_max_window_bits=99",
        "permessage-deflate; server_max_window_bits=11",
    ]
    assert str(answer_offers(lines, WIDE)) == "permessage-deflate; server_max_window_bits=11"
    assert answer_offers([], WIDE) is None


@pytest.mark.parametrize("line", ["permessage-deflate;", "permessage-deflate; a=", "=1", 'a; b="c', "a b", "é"])
def test_a_malformed_header_is_no_offer(line: str) -> None:
    with pytest.raises(InvalidHeader):
        answer_offers([line], WIDE)
    with pytest.raises(HandshakeFailed):
        accept_answer([line], WIDE)


# What a client accepts


@pytest.mark.parametrize(
    ("config", "answer", "terms"),  # server bits, client bits, server takeover, client takeover
    [
        (WIDE, "permessage-deflate", (15, 15, True, True)),
        (WIDE, "permessage-deflate; server_max_window_bits=8", (8, 15, True, True)),
        (WIDE, "permessage-deflate; client_max_window_bits=8", (15, 8, True, True)),
        (WIDE, 'permessage-deflate; client_max_window_bits="9"', (15, 9, True, True)),
        (WIDE, "permessage-deflate; server_no_context_takeover", (15, 15, False, True)),
        (WIDE, "permessage-deflate; client_no_context_takeover", (15, 15, True, False)),
        # The second offer has no limit for the server, so its answer may lack one, or have any.
        (DEFAULT, "permessage-deflate", (15, 12, True, True)),
        (DEFAULT, "permessage-deflate; server_max_window_bits=14", (14, 12, True, True)),
        (
            DEFAULT,
            "permessage-deflate; server_max_window_bits=9; client_max_window_bits=9",
            (9, 9, True, True),
        ),
        (WIDE.with_client_no_context_takeover(True), "permessage-deflate", (15, 15, True, False)),
    ],
)
def test_accepted_answers(config: CompressionConfig, answer: str, terms: tuple[Any, ...]) -> None:
    got = accept_answer([answer], config)
    assert got is not None
    assert (got.server_window_bits, got.client_window_bits, got.server_takeover, got.client_takeover) == terms


@pytest.mark.parametrize(
    ("config", "answer"),
    [
        (DEFAULT.with_enabled(False), "permessage-deflate"),
        (WIDE, "permessage-zstd"),
        (WIDE, "x-other"),
        (WIDE, "permessage-deflate, permessage-deflate"),
        (WIDE, "permessage-deflate, x-other"),
        (WIDE, "permessage-deflate; unknown"),
        (WIDE, "permessage-deflate; client_max_window_bits"),
        (WIDE, "permessage-deflate; server_max_window_bits"),
        (WIDE, "permessage-deflate; server_max_window_bits=16"),
        (WIDE, "permessage-deflate; client_max_window_bits=7"),
        (WIDE, "permessage-deflate; server_max_window_bits=9; server_max_window_bits=9"),
        (WIDE, "permessage-deflate; server_no_context_takeover=true"),
        (WIDE.with_server_no_context_takeover(True), "permessage-deflate"),
        (ZSTD, "permessage-zstd"),
        (ZSTD, "permessage-zstd; server_max_window_bits=9"),
        (ZSTD, "permessage-zstd; server_max_window_bits=12; dictionary=00000000"),
        (ZSTD.with_zstd_dictionary(None), "permessage-zstd; server_max_window_bits=12; dictionary=00000000"),
    ],
)
def test_refused_answers(config: CompressionConfig, answer: str) -> None:
    with pytest.raises(HandshakeFailed):
        accept_answer([answer], config)


def test_no_answer_is_no_compression() -> None:
    assert accept_answer([], DEFAULT) is None
    assert accept_answer([""], DEFAULT) is None


# Both sides


def converse(client: Agreement, client_config: CompressionConfig, server: Agreement, config: Any) -> None:
    here, there = client.codec(client_config, "client"), server.codec(config, "server")
    for sender, receiver in ((here, there), (there, here)) * 2:
        for message in TEXT:
            assert receiver.decode(sender.encode(message), limit=1000) == message


@given(configs, configs)
def test_any_two_of_us_agree(client: CompressionConfig, server: CompressionConfig) -> None:
    answer = answer_offers([str(make_offer(client))], server)
    assert answer is not None
    assert (answer.extension == "permessage-zstd") == (client.algorithm == server.algorithm == "zstd")
    got = accept_answer([str(answer)], client)
    assert got is not None
    assert got.client_window_bits <= answer.client_window_bits  # a client may use less than it is allowed
    assert replace(got, client_window_bits=answer.client_window_bits, client_takeover=answer.client_takeover) == answer
    converse(got, client, answer, server)


def test_zstd_uses_a_dictionary_only_if_both_have_it() -> None:
    for theirs, expected in ((DICTIONARY, DICTIONARY), (b"another one", None), (None, None)):
        config = ZSTD.with_zstd_dictionary(theirs)
        answer = answer_offers([str(make_offer(ZSTD))], config)
        assert answer is not None
        codec = answer.codec(config, "server")
        assert isinstance(codec, ZstdCodec)
        assert codec.dictionary == expected


def test_a_codec_knows_its_side() -> None:
    agreement = Agreement("permessage-deflate", (), 9, 10, True, False)
    config = CompressionConfig(threshold=77)
    client, server = agreement.codec(config, "client"), agreement.codec(config, "server")
    assert isinstance(client, DeflateCodec)
    assert (client.own_window_bits, client.peer_window_bits) == (10, 9)
    assert (server.own_window_bits, server.peer_window_bits) == (9, 10)
    assert (client.own_takeover, client.peer_takeover) == (False, True)
    assert (server.own_takeover, server.peer_takeover) == (True, False)
    assert client.threshold == 77


# `websockets` as oracle

BITS = [None, 8, 9, 12, 15]


@pytest.mark.parametrize("server_takeover", [False, True])
@pytest.mark.parametrize("client_takeover", [False, True])
def test_a_client_of_websockets_accepts_our_answers(server_takeover: bool, client_takeover: bool) -> None:
    for server_bits, client_bits, ours in itertools.product(BITS, [None, True, 9, 12, 15], [9, 12, 15]):
        theirs = ClientPerMessageDeflateFactory(not server_takeover, not client_takeover, server_bits, client_bits)
        offer = build_extension([(theirs.name, list(theirs.get_request_params()))])
        config = CompressionConfig(server_max_window_bits=ours, client_max_window_bits=ours)
        answer = answer_offers([offer], config)
        assert answer is not None
        ((_, parameters),) = parse_extension(str(answer))
        extension = theirs.process_response_params(parameters, [])
        assert extension.remote_max_window_bits == answer.server_window_bits
        assert extension.local_max_window_bits == answer.client_window_bits
        assert extension.remote_no_context_takeover != answer.server_takeover
        assert extension.local_no_context_takeover != answer.client_takeover


@given(configs.filter(lambda config: config.algorithm == "deflate"), st.data())
def test_we_accept_the_answers_of_a_server_of_websockets(config: CompressionConfig, data: st.DataObject) -> None:
    theirs = ServerPerMessageDeflateFactory(
        data.draw(st.booleans()),
        data.draw(st.booleans()),
        data.draw(st.sampled_from([None, 9, 12, 15])),
        data.draw(st.sampled_from(BITS)),
    )
    for _, parameters in parse_extension(str(make_offer(config))):
        answer, extension = theirs.process_request_params(parameters, [])
        got = accept_answer([build_extension([(theirs.name, answer)])], config)
        assert got is not None
        assert extension.local_max_window_bits == got.server_window_bits
        assert extension.local_no_context_takeover != got.server_takeover
        # The receiver's window may be larger than what the sender keeps to.
        assert extension.remote_max_window_bits >= got.client_window_bits
        assert extension.remote_no_context_takeover <= (not got.client_takeover)


names = st.sampled_from(
    [
        "server_no_context_takeover",
        "client_no_context_takeover",
        "server_max_window_bits",
        "client_max_window_bits",
        "x",
    ]
)
values = st.sampled_from([None, "7", "8", "9", "12", "15", "16", "", "abc", "+9", "09"])
parameter_lists = st.lists(st.tuples(names, values), max_size=4)


def shown(parameters: list[tuple[str, str | None]]) -> str:
    quoted = [name if value is None else f'{name}="{value}"' for name, value in parameters]
    return "; ".join(["permessage-deflate", *quoted])


@given(parameter_lists)
def test_we_accept_the_offers_that_websockets_accepts(parameters: list[tuple[str, str | None]]) -> None:
    try:
        ServerPerMessageDeflateFactory(server_max_window_bits=15).process_request_params(list(parameters), [])
    except NegotiationError as error:
        # The one difference: zlib has no window of 8 bits, and our encoder does.
        expected = "= 8" in str(error)
    else:
        expected = True
    assert (answer_offers([shown(parameters)], WIDE) is not None) == expected


@given(parameter_lists)
def test_we_accept_the_answers_that_websockets_accepts(parameters: list[tuple[str, str | None]]) -> None:
    try:
        ClientPerMessageDeflateFactory().process_response_params(list(parameters), [])
    except NegotiationError as error:
        expected = "= 8" in str(error)
    else:
        expected = True
    try:
        accept_answer([shown(parameters)], WIDE)
    except HandshakeFailed:
        assert not expected
    else:
        assert expected


@given(st.lists(st.text(max_size=60), max_size=3), configs)
def test_no_header_raises_anything_else(lines: list[str], config: CompressionConfig) -> None:
    with contextlib.suppress(InvalidHeader):
        answer_offers(lines, config)
    with contextlib.suppress(HandshakeFailed):
        accept_answer(lines, config)


# Alone


@pytest.mark.parametrize("config", [DEFAULT, ZSTD, DEFAULT.with_server_no_context_takeover(True)])
@pytest.mark.parametrize("sender", ["client", "server"])
def test_alone(config: CompressionConfig, sender: Any, rng: random.Random) -> None:
    compressor, decompressor = Compressor(config, sender=sender), Decompressor(config, sender=sender)
    assert compressor.ratio == decompressor.ratio == 1.0
    for message in TEXT * 3:
        assert decompressor.decompress(compressor.compress(message)) == message
        if rng.random() < 0.1:
            compressor.release()
    assert compressor.bytes_in == decompressor.bytes_out == sum(map(len, TEXT)) * 3
    assert compressor.bytes_out == decompressor.bytes_in
    assert compressor.ratio == decompressor.ratio == compressor.bytes_out / compressor.bytes_in
    assert compressor.saved == pytest.approx(1 - compressor.ratio)


def test_strings_are_compressed_as_utf8() -> None:
    assert Decompressor().decompress(Compressor().compress("größer")) == "größer".encode()


def test_json_saves_three_quarters_at_the_default(rng: random.Random) -> None:
    compressor = Compressor()
    for i in range(400):
        side, price = rng.choice(["buy", "sell"]), round(rng.gauss(64_000, 40), 2)
        compressor.compress(
            json.dumps({"type": "trade", "symbol": "BTC-USD", "side": side, "price": price, "sequence": i})
        )
    assert compressor.saved > 0.75


def test_errors_alone() -> None:
    with pytest.raises(CompressionError):
        Decompressor().decompress(b"no deflate")
    small = Decompressor(max_message_size=10)
    with pytest.raises(MessageTooLarge) as caught:
        small.decompress(Compressor().compress(bytes(11)))
    assert (caught.value.size, caught.value.limit) == (11, 10)
    with pytest.raises(CompressionError):
        small.decompress(Compressor().compress(b""))
    with pytest.raises(ValueError, match="max_message_size"):
        Decompressor(max_message_size=-1)
