"""What every Python peer shares: its options, the event loop, the TLS context, and telling its port.

The first line a server prints is its port. It then serves until it is terminated. The loop is uvloop for all.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import resource
import ssl
from collections.abc import Awaitable, Callable, Iterator

import uvloop


def options() -> argparse.Namespace:
    """Reads the command line all servers understand."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--broadcast", action="store_true", help="send every message to everybody instead of echoing it"
    )
    parser.add_argument(
        "--busy-poll", type=float, default=0.0, metavar="SECONDS", help="look for messages for so long before sleeping"
    )
    parser.add_argument("--callbacks", action="store_true", help="plain callbacks instead of an async handler")
    parser.add_argument(
        "--deflate", action="store_true", help="switch permessage-deflate on where it is off by default"
    )
    parser.add_argument(
        "--fan-out", type=int, default=0, metavar="N", help="publish every message N times, all in one turn of the loop"
    )
    parser.add_argument("--one-by-one", action="store_true", help="send to each connection instead of to a topic")
    parser.add_argument(
        "--slowed-down", type=int, default=1, metavar="N", help="run N times as slowly as usual, by an instrument"
    )
    parser.add_argument("--smallest", action="store_true", help="save bytes rather than time")
    parser.add_argument("--twice", action="store_true", help="answer each message by two sends instead of one")
    parser.add_argument(
        "--spread", action="store_true", help="publish every message to 1,000 topics, of which a connection has ten"
    )
    parser.add_argument("--tls", nargs=2, metavar=("CERTIFICATE", "KEY"), help="serve wss")
    return parser.parse_args()


SPREAD, EACH = 1000, 10  # topics, and how many of them a connection has


def published(arguments: argparse.Namespace) -> list[str]:
    """The topics that one message is published to, one after the other."""
    return [f"topic/{number}" for number in range(SPREAD)] if arguments.spread else ["everybody"] * arguments.fan_out


def subscribed(arguments: argparse.Namespace) -> Iterator[list[str]]:
    """The topics of one connection after the other."""
    for first in itertools.count():
        yield [f"topic/{(first + k) % SPREAD}" for k in range(EACH)] if arguments.spread else ["everybody"]


def tls_context(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    """The server's context, or None for plain TCP."""
    if arguments.tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*arguments.tls)
    return context


def announce(port: int) -> None:
    """Tells the suite where to connect."""
    print(port, flush=True)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Runs `main` on uvloop with as many file descriptors as allowed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())  # type: ignore[arg-type]
