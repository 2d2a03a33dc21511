"""The systems under test: what each is called, how it is started, what it can do."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tools

SERVERS = tools.HERE / "servers"
CLIENTS = tools.HERE / "clients"


def python(name: str, *flags: str) -> tuple[str, ...]:
    """The command line of one Python server."""
    return (sys.executable, str(SERVERS / f"{name}.py"), *flags)


@dataclass(frozen=True)
class Peer:
    """One server. `can` names the server options it understands besides echoing."""

    name: str
    command: tuple[str, ...]
    can: frozenset[str]
    distribution: str = ""  # whose version is reported


def _peer(name: str, command: tuple[str, ...], can: str, distribution: str = "") -> Peer:
    return Peer(name, command, frozenset(can.split()), distribution)


#: A bare loop of send() in C: what any server that sends to each connection separately can reach at best.
FLOOR = "raw C"

#: What socketify runs on, without Python.
UWS = "uWebSockets"

#: `fabric` without topics: a send for each message and connection.
ONE_BY_ONE = "fabric one by one"

#: `fabric` set to save bytes rather than time.
SMALLEST = "fabric smallest"

#: `fabric` that polls: for so many seconds after the last byte it does not sleep. While another peer has its turn it is
#: cold, and takes nobody's core.
POLLING = "fabric polling"
POLL = ("--busy-poll", "0.01")

#: A client and a server in C that look at one socket again and again: the floor of polling.
RAW_POLLING = "raw C polling"

#: Clients whose calls block.
BLOCKING = "fabric.sync"
BLOCKING_POLLING = "fabric.sync polling"
BLOCKING_DROP_IN = "fabric.websockets.sync"
BLOCKING_WEBSOCKETS = "websockets.sync"

SERVER_PEERS = {
    peer.name: peer
    for peer in (
        _peer("fabric", python("fabric_server"), "broadcast tls deflate twice fan-out", "websocket-fabric"),
        _peer(ONE_BY_ONE, python("fabric_server", "--one-by-one"), "fan-out", "websocket-fabric"),
        _peer("fabric callbacks", python("fabric_server", "--callbacks"), "tls deflate twice", "websocket-fabric"),
        _peer("fabric.websockets", python("fabric_websockets_server"), "broadcast tls deflate", "websocket-fabric"),
        _peer(SMALLEST, python("fabric_server", "--smallest"), "deflate", "websocket-fabric"),
        _peer(POLLING, python("fabric_server", *POLL), "tls", "websocket-fabric"),
        _peer("picows core", python("picows_server"), "broadcast tls twice", "picows"),
        _peer("picows.websockets", python("picows_websockets_server"), "broadcast tls deflate twice", "picows"),
        _peer("websockets", python("websockets_server"), "broadcast tls deflate twice", "websockets"),
        _peer("aiohttp", python("aiohttp_server"), "tls deflate twice", "aiohttp"),
        _peer("socketify", python("socketify_server"), "broadcast fan-out", "socketify"),
        _peer(UWS, (str(tools.SERVER_UWS), tools.uws_library()), "", "socketify"),
        _peer("ws (Node.js)", ("node", str(SERVERS / "ws.js")), "broadcast tls deflate twice"),
        _peer("Boost.Beast", (str(tools.SERVER_NATIVE),), "broadcast deflate"),
        _peer(FLOOR, (str(tools.SERVER_RAW),), "broadcast"),
        _peer(RAW_POLLING, (str(tools.POLL_RAW),), ""),
    )
}

#: WebSocket implementations for uvicorn, each with the same ASGI applications.
ASGI_PEERS = {
    peer.name: peer
    for peer in (
        _peer("fabric.asgi", python("asgi_server"), "fastapi", "websocket-fabric"),
        _peer("websockets-sansio", python("asgi_server", "--ws", "websockets-sansio"), "fastapi", "uvicorn"),
        _peer("wsproto", python("asgi_server", "--ws", "wsproto"), "fastapi", "uvicorn"),
    )
}

CLIENT_PEERS = {
    name: (sys.executable, str(CLIENTS / f"{script}.py"), *flags)
    for name, script, flags in (
        ("fabric", "fabric_client", ()),
        (POLLING, "fabric_client", POLL),
        ("picows.websockets", "picows_websockets_client", ()),
        ("websockets", "websockets_client", ()),
        ("aiohttp", "aiohttp_client", ()),
        (BLOCKING, "fabric_sync_client", ()),
        (BLOCKING_POLLING, "fabric_sync_client", POLL),
        (BLOCKING_DROP_IN, "fabric_websockets_sync_client", ()),
        (BLOCKING_WEBSOCKETS, "websockets_sync_client", ()),
    )
} | {RAW_POLLING: (str(tools.POLL_RAW),)}

#: Those on an event loop, which do not poll.
ASYNC_CLIENTS = ("fabric", "picows.websockets", "websockets", "aiohttp")

#: Servers of two that share a broker, and how their messages go: a layer of servers/broker_node.py, and the broker.
OVER_REDIS = "fabric over Redis"
CHANNELS = "channels_redis"
SOCKET_IO = "python-socketio"
NODES = {
    "fabric": ("fabric", "nats"),
    OVER_REDIS: ("fabric", "redis"),
    CHANNELS: ("core", "redis"),
    "channels_redis pubsub": ("pubsub", "redis"),
    SOCKET_IO: ("socketio", "redis"),
}

#: How a message goes to another server's client: a layer as above, or none, which is the broker's own way; the broker.
BARE_NATS, BARE_REDIS = "bare NATS", "bare Redis"
WAYS = {
    "fabric": ("fabric", "nats"),
    BARE_NATS: ("", "nats"),
    OVER_REDIS: ("fabric", "redis"),
    BARE_REDIS: ("", "redis"),
}

#: Clients of a broker, and the broker.
BROKER_CLIENTS = {
    "fabric": ("fabric", "nats"),
    OVER_REDIS: ("fabric", "redis"),
    "nats-py": ("nats-py", "nats"),
    "redis-py": ("redis-py", "redis"),
}
