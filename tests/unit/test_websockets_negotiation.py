"""fabric.websockets: what handshakes ask, judge, answer and agree on, beside the Sans-I/O classes of `websockets`."""

from __future__ import annotations

import importlib
import itertools
import logging
import re
from typing import Any

import pytest
import websockets
import websockets.client
import websockets.server

from fabric.websockets._negotiation import ClientNegotiation, ServerNegotiation, reject
from fabric.websockets.exceptions import NegotiationError
from fabric.websockets.version import version

OURS, THEIRS = "fabric.websockets", "websockets"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.fixture(autouse=True)
def same_release() -> None:
    if websockets.__version__ != version:
        pytest.skip(f"websockets {version} is not installed")


def of(package: str, module: str) -> Any:
    return importlib.import_module(f"{package}.{module}")


def request(
    package: str, *lines: tuple[str, str], method: str = "GET", protocol: str = "HTTP/1.1", **changes: Any
) -> Any:
    fields = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "keep-alive, Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    headers = of(package, "datastructures").Headers([(n, v) for n, v in fields.items() if v is not None])
    for name, value in lines:
        headers[name] = value
    return of(package, "http11").Request("/path", headers, method, protocol)


def answered(response: Any) -> tuple[Any, ...]:
    """A response without what depends on the moment."""
    headers = [line for line in response.headers.raw_items() if line[0] != "Date"]
    return response.status_code, response.reason_phrase, headers, bytes(response.body)


REQUESTS: list[dict[str, Any]] = [
    {},
    {"method": "POST"},
    {"method": "HEAD"},
    {"protocol": "HTTP/1.0"},
    {"Upgrade": None},
    {"Upgrade": "h2c, websocket"},
    {"Upgrade": "WebSocket"},
    {"Connection": "close"},
    {"Connection": None},
    {"Connection": "a b"},
    {"Sec_WebSocket_Key": None},
    {"Sec_WebSocket_Key": "short"},
    {"Sec_WebSocket_Key": "c2hvcnQ="},
    {"Sec_WebSocket_Version": None},
    {"Sec_WebSocket_Version": "8"},
    {"Origin": "https://good.example"},
    {"Origin": "https://evil.example"},
    {"Sec_WebSocket_Protocol": "chat, superchat"},
    {"Sec_WebSocket_Protocol": "unknown"},
    {"Sec_WebSocket_Protocol": "a b"},
    {"Sec_WebSocket_Extensions": "permessage-deflate; client_max_window_bits"},
    {"Sec_WebSocket_Extensions": "permessage-deflate; nonsense, permessage-deflate"},
    {"Sec_WebSocket_Extensions": "x-unknown, permessage-deflate; server_max_window_bits=8"},
    {"Sec_WebSocket_Extensions": "permessage-deflate; ="},
]
LINES = [
    (("Sec-WebSocket-Key", KEY),),
    (("Sec-WebSocket-Version", "13"),),
    (("Origin", "https://good.example"), ("Origin", "https://good.example")),
    (("Sec-WebSocket-Protocol", "a"), ("Sec-WebSocket-Protocol", "superchat")),
]
SERVERS: list[dict[str, Any]] = [
    {},
    {"subprotocols": ["superchat", "chat"]},
    {"origins": ["https://good.example", re.compile(r"https://\w+\.good\.example")]},
    {"origins": [None]},
]


@pytest.mark.parametrize("options", SERVERS, ids=str)
@pytest.mark.parametrize(
    ("changes", "lines"), [*((each, ()) for each in REQUESTS), *(({}, each) for each in LINES)], ids=str
)
def test_a_server_answers_the_same(options: dict[str, Any], changes: dict[str, Any], lines: Any) -> None:
    answers = []
    for package, kind in ((OURS, ServerNegotiation), (THEIRS, websockets.server.ServerProtocol)):
        deflate = of(package, "extensions.permessage_deflate")
        server: Any = kind(extensions=deflate.enable_server_permessage_deflate(None), **options)
        answers.append(
            (
                answered(server.accept(request(package, *lines, **changes))),
                server.subprotocol,
                repr(server.extensions),
                server.origin,
                type(server.handshake_exc).__name__,
                str(server.handshake_exc),
            )
        )
    assert answers[0] == answers[1]


def test_what_the_application_raises_is_answered_with_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def select(offered: Any) -> Any:
        raise RuntimeError("BOOM")

    with caplog.at_level(logging.ERROR, "websockets.server"):
        response = ServerNegotiation(select_subprotocol=select).accept(request(OURS))
    assert response.status_code == 500
    assert [(record.name, record.message) for record in caplog.records] == [
        ("websockets.server", "opening handshake failed")
    ]


def test_the_application_chooses_or_refuses_a_subprotocol() -> None:
    server = ServerNegotiation(select_subprotocol=lambda offered: offered[1])
    response = server.accept(request(OURS, Sec_WebSocket_Protocol="a, b"))
    assert response.headers["Sec-WebSocket-Protocol"] == server.subprotocol == "b"

    def refuse(offered: Any) -> Any:
        raise NegotiationError("none of these")

    response = ServerNegotiation(select_subprotocol=refuse).accept(request(OURS))
    assert response.status_code == 400
    assert response.body == b"Failed to open a WebSocket connection: none of these.\n"


def test_a_plain_response_is_the_same() -> None:
    ours = reject(404, "nö")
    theirs = websockets.server.ServerProtocol().reject(404, "nö")
    assert answered(ours) == answered(theirs)
    with pytest.raises(ValueError, match="999"):
        reject(999, "")


@pytest.mark.parametrize("uri", ["ws://example.org/a?b", "wss://user:pass@example.org:8443", "ws://[::1]"])
@pytest.mark.parametrize(
    "options", [{}, {"origin": "https://o"}, {"subprotocols": ["a", "b"]}, {"deflate": True}], ids=str
)
def test_a_client_asks_the_same(uri: str, options: dict[str, Any]) -> None:
    asked = []
    for package, kind in ((OURS, ClientNegotiation), (THEIRS, websockets.client.ClientProtocol)):
        options = dict(options)
        if options.pop("deflate", False):
            deflate = of(package, "extensions.permessage_deflate")
            options["extensions"] = deflate.enable_client_permessage_deflate(None)
        client: Any = kind(of(package, "uri").parse_uri(uri), **options)
        client.key = KEY
        asked.append((client.request() if package == OURS else client.connect()).serialize())
    assert asked[0] == asked[1]


RESPONSES: list[dict[str, Any]] = [
    {},
    {"status": 403},
    {"Connection": None},
    {"Connection": "close"},
    {"Upgrade": None},
    {"Upgrade": "h2c"},
    {"Sec_WebSocket_Accept": None},
    {"Sec_WebSocket_Accept": "wrong"},
    {"Sec_WebSocket_Protocol": "chat"},
    {"Sec_WebSocket_Protocol": "other"},
    {"Sec_WebSocket_Protocol": "chat, other"},
    {"Sec_WebSocket_Extensions": "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12"},
    {"Sec_WebSocket_Extensions": "permessage-deflate; server_max_window_bits=7"},
    {"Sec_WebSocket_Extensions": "permessage-deflate, permessage-deflate"},
    {"Sec_WebSocket_Extensions": "x-unknown"},
]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("changes", RESPONSES, ids=str)
def test_a_client_judges_the_same(changes: dict[str, Any], plain: bool) -> None:
    outcomes = []
    for package, kind in ((OURS, ClientNegotiation), (THEIRS, websockets.client.ClientProtocol)):
        fields = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": ACCEPT}
        fields |= {name.replace("_", "-"): value for name, value in changes.items() if name != "status"}
        headers = of(package, "datastructures").Headers([(n, v) for n, v in fields.items() if v is not None])
        response = of(package, "http11").Response(changes.get("status", 101), "", headers)
        deflate = of(package, "extensions.permessage_deflate")
        options = (
            {} if plain else {"subprotocols": ["chat"], "extensions": deflate.enable_client_permessage_deflate(None)}
        )
        client: Any = kind(of(package, "uri").parse_uri("ws://h"), **options)
        client.key = KEY
        try:
            client.check(response) if package == OURS else client.process_response(response)
        except Exception as error:  # noqa: BLE001  (it is compared)
            outcomes.append((type(error).__name__, str(error)))
        else:
            outcomes.append((client.subprotocol, repr(client.extensions)))
    assert outcomes[0] == outcomes[1]


# --- permessage-deflate (RFC 7692 §7.1) --------------------------------------------------------------------


def negotiated(package: str, factory: str, options: dict[str, Any], method: str, params: Any) -> Any:
    kind = getattr(of(package, "extensions.permessage_deflate"), factory)
    try:
        return repr(getattr(kind(**options), method)(params, []))
    except Exception as error:  # noqa: BLE001  (it is compared)
        return type(error).__name__, str(error)


BITS = [None, 8, 9, 12, 15]


@pytest.mark.parametrize("takeover", [(False, False), (True, False), (False, True)])
def test_every_answer_to_an_offer_is_the_same(takeover: tuple[bool, bool]) -> None:
    for server, client, offered_server, offered_client, required in itertools.product(
        BITS, BITS, BITS, [*BITS, True], [False, True]
    ):
        options = {
            "server_no_context_takeover": takeover[0],
            "client_max_window_bits": client,
            "server_max_window_bits": server,
            "require_client_max_window_bits": required,
        }
        params: list[Any] = [("client_no_context_takeover", None)] if takeover[1] else []
        if offered_server is not None:
            params.append(("server_max_window_bits", str(offered_server)))
        if offered_client is not None:
            params.append(("client_max_window_bits", None if offered_client is True else str(offered_client)))
        ours, theirs = (
            negotiated(package, "ServerPerMessageDeflateFactory", options, "process_request_params", params)
            for package in (OURS, THEIRS)
        )
        assert ours == theirs, (options, params)


@pytest.mark.parametrize("takeover", list(itertools.product([False, True], repeat=3)))
def test_every_answer_is_judged_the_same(takeover: tuple[bool, bool, bool]) -> None:
    for server, client, answered_server, answered_client in itertools.product(BITS, [*BITS, True], BITS, BITS):
        options = {
            "server_no_context_takeover": takeover[0],
            "client_no_context_takeover": takeover[1],
            "client_max_window_bits": client,
            "server_max_window_bits": server,
        }
        params: list[Any] = [("server_no_context_takeover", None)] if takeover[2] else []
        if answered_server is not None:
            params.append(("server_max_window_bits", str(answered_server)))
        if answered_client is not None:
            params.append(("client_max_window_bits", str(answered_client)))
        ours, theirs = (
            negotiated(package, "ClientPerMessageDeflateFactory", options, "process_response_params", params)
            for package in (OURS, THEIRS)
        )
        assert ours == theirs, (options, params)


@pytest.mark.parametrize(
    "params",
    [
        [("server_no_context_takeover", "x")],
        [("server_no_context_takeover", None)] * 2,
        [("client_max_window_bits", "16")],
        [("client_max_window_bits", "012")],
        [("server_max_window_bits", None)],
        [("server_max_window_bits", "")],
        [("nonsense", None)],
    ],
    ids=str,
)
def test_wrong_parameters_are_refused_the_same(params: Any) -> None:
    for factory, method in (
        ("ServerPerMessageDeflateFactory", "process_request_params"),
        ("ClientPerMessageDeflateFactory", "process_response_params"),
    ):
        ours, theirs = (negotiated(package, factory, {}, method, params) for package in (OURS, THEIRS))
        assert ours == theirs


@pytest.mark.parametrize("bits", [None, True, 8, 9, 15])
@pytest.mark.parametrize("server", [None, 8, 15])
def test_an_offer_is_the_same(bits: Any, server: int | None) -> None:
    offers = []
    for package in (OURS, THEIRS):
        kind = of(package, "extensions.permessage_deflate").ClientPerMessageDeflateFactory
        try:
            factory = kind(client_max_window_bits=bits, server_max_window_bits=server, client_no_context_takeover=True)
        except ValueError as error:
            offers.append(str(error))
        else:
            offers.append(list(factory.get_request_params()))
    assert offers[0] == offers[1]


def test_what_was_agreed_on_once_is_not_agreed_on_twice() -> None:
    deflate = of(OURS, "extensions.permessage_deflate")
    agreed = deflate.PerMessageDeflate(False, False, 15, 15)
    with pytest.raises(NegotiationError, match="received duplicate"):
        deflate.ClientPerMessageDeflateFactory().process_response_params([], [agreed])
    with pytest.raises(NegotiationError, match="skipped duplicate"):
        deflate.ServerPerMessageDeflateFactory().process_request_params([], [agreed])


def test_settings_of_the_compressor_are_those_that_there_are() -> None:
    deflate = of(OURS, "extensions.permessage_deflate")
    for kind, own in (
        (deflate.ClientPerMessageDeflateFactory, "client"),
        (deflate.ServerPerMessageDeflateFactory, "server"),
    ):
        with pytest.raises(ValueError, match=f"set {own}_max_window_bits instead"):
            kind(compress_settings={"wbits": 9})
        with pytest.raises(ValueError, match="zdict is not supported, only level and memLevel"):
            kind(compress_settings={"zdict": b""})
        kind(compress_settings={"level": 9, "memLevel": 4, "strategy": 0, "method": 8})


def test_the_codec_has_what_was_agreed_on() -> None:
    deflate = of(OURS, "extensions.permessage_deflate")
    codec = deflate.PerMessageDeflate(True, False, 10, 12, {"level": 6}).codec()
    assert (codec.peer_takeover, codec.own_takeover) == (False, True)
    assert (codec.peer_window_bits, codec.own_window_bits) == (10, 12)
    server = ServerNegotiation(extensions=deflate.enable_server_permessage_deflate(None))
    assert server.codec() is None
    server.accept(request(OURS, Sec_WebSocket_Extensions="permessage-deflate"))
    assert server.codec() is not None
