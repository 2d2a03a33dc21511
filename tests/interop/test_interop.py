"""fabric and others talk: messages of every length, pings both ways, compression, subprotocols, closes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from interop import browsers, peers
from interop.talk import CHOSEN, TALKS, Report, Talk


@dataclass(frozen=True)
class Peer:
    """One peer, and what tells it from the others.

    Attributes:
        missing: says why it cannot be tried, or nothing.
        default_code: what it closes with when its user names no code; 1005 is a close frame without a body.
        answer_code: what it answers any close frame with; None for the same code, as RFC 6455 §5.5.1 advises.
        repeats_reason: its answer to a close frame repeats the reason.
        hears_reason: it tells its user the reason of an answer to its own close frame.
    """

    client: peers.Client | None = None
    server: peers.Server | None = None
    missing: Callable[[], str] = str
    default_code: int = 1000
    answer_code: int | None = None
    repeats_reason: bool = True
    hears_reason: bool = True


PEERS = {
    "fabric": Peer(peers.fabric_client, peers.fabric_server),
    "websockets": Peer(peers.websockets_client, peers.websockets_server),
    "aiohttp": Peer(
        peers.aiohttp_client, peers.aiohttp_server, answer_code=1000, repeats_reason=False, hears_reason=False
    ),
    "ws": Peer(peers.ws_client, peers.ws_server, peers.missing_ws, default_code=1005),
    "chromium": Peer(
        browsers.client(browsers.chromium),
        missing=lambda: browsers.missing("chromium", "chromium-browser"),
        default_code=1005,
    ),
    "firefox": Peer(
        browsers.client(browsers.firefox),
        missing=lambda: browsers.missing("firefox-esr", "firefox"),
        default_code=1005,
    ),
}

PAIRS = [(name, "fabric") for name, peer in PEERS.items() if peer.client] + [
    ("fabric", name) for name, peer in PEERS.items() if peer.server and name != "fabric"
]


@pytest.mark.deadline(120)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize(("client", "server"), PAIRS, ids=map("-to-".join, PAIRS))
async def test_talk(client: str, server: str, compressed: bool, require: Callable[[object, str], None]) -> None:
    for name in (client, server):
        reason = PEERS[name].missing()
        require(not reason, reason)
    lead, serve = PEERS[client].client, PEERS[server].server
    assert lead is not None
    assert serve is not None
    async with serve(compressed) as (url, followed):
        led = await lead(url, TALKS, compressed)
        for talk, told in zip(TALKS, led, strict=True):
            async with asyncio.timeout(25):
                answered = await followed.get()
            assert (told, answered) == expected(talk, PEERS[client], PEERS[server], compressed), talk
        assert followed.empty()


def expected(talk: Talk, client: Peer, server: Peer, compressed: bool) -> tuple[Report, Report]:
    """What both sides are to report of `talk`: each what it heard of the other (RFC 6455 §7.1.5, §7.1.6)."""
    closer, answerer = (client, server) if talk.closer == "client" else (server, client)
    code = closer.default_code if talk.code is None else talk.code
    to_answerer = {"code": code, "reason": talk.reason}
    to_closer = {
        "code": answerer.answer_code or code,
        "reason": (talk.reason if answerer.repeats_reason else "") if closer.hears_reason else None,
    }
    to_client, to_server = (to_closer, to_answerer) if talk.closer == "client" else (to_answerer, to_closer)
    common = {
        "protocol": CHOSEN if CHOSEN in talk.protocols else "",
        "extension": "permessage-deflate" if compressed else "",
    }
    echoed = [list(message) for message in talk.messages] + [["pong", data] for data in talk.pings]
    return {"echoed": echoed, **common, **to_client}, {**common, **to_server}
