"""Arguments that several commands share, and what they mean: types with units, and the connection's options.

Owns the way from a command line to a `ClientConfig`. A user's mistake becomes `UsageError`, one sentence.
"""

from __future__ import annotations

import argparse
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from fabric.cli.units import parse_duration, parse_duration_or_inf, parse_rate, parse_size
from fabric.config import ClientConfig
from fabric.error import Error
from fabric.headers import HeaderMap

__all__ = [
    "Formatter",
    "UsageError",
    "add_busy_poll_option",
    "add_connection_options",
    "add_loop_option",
    "client_config",
    "count",
    "duration",
    "rate",
    "server_context",
    "size",
]

T = TypeVar("T")


class UsageError(Exception):
    """The user asked for something that cannot be; the sentence says what is allowed."""


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions; leaves room for long options."""

    def __init__(self, prog: str, **options: Any) -> None:
        options.setdefault("max_help_position", 30)
        super().__init__(prog, **options)


def _type(parse: Callable[[str], T], name: str) -> Callable[[str], T]:
    """A type for argparse, which shows the sentence of a ValueError only if it is its own class."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    convert.__name__ = name
    return convert


def _parse_count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError(f"{text!r}: expected a whole number above 0")
    return int(text)


def _parse_header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise ValueError(f"{text.partition(':')[0]!r}: expected NAME:VALUE")
    return name.strip(), value.strip()


count = _type(_parse_count, "count")
duration = _type(parse_duration, "duration")
_duration_or_inf = _type(parse_duration_or_inf, "duration")
rate = _type(parse_rate, "rate")
size = _type(parse_size, "size")
_header = _type(_parse_header, "header")


def add_loop_option(parser: argparse.ArgumentParser) -> None:
    """Add `--loop`, which `main` reads."""
    parser.add_argument(
        "--loop",
        choices=("auto", "uvloop", "asyncio"),
        default="auto",
        help="event loop; auto = uvloop where it is installed (default: %(default)s)",
    )


def add_busy_poll_option(parser: Any) -> None:
    """Add `--busy-poll`, the `busy_poll` of a config."""
    parser.add_argument(
        "--busy-poll",
        type=_duration_or_inf,
        default=0.0,
        metavar="SECONDS",
        help="look for the next message for so long instead of sleeping, at the cost of a processor; inf = always",
    )


def add_connection_options(parser: argparse.ArgumentParser, *, compression: bool) -> None:
    """Add what `client_config` reads. `compression` tells whether it is offered by default."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "-H",
        "--header",
        dest="headers",
        metavar="NAME:VALUE",
        type=_header,
        action="append",
        default=[],
        help="a header of the request; may be repeated",
    )
    group.add_argument("--origin", help="the Origin header")
    group.add_argument(
        "-s",
        "--subprotocol",
        dest="subprotocols",
        metavar="NAME",
        action="append",
        default=[],
        help="a subprotocol to offer; may be repeated, the preferred one first",
    )
    group.add_argument(
        "--timeout",
        type=duration,
        default=5.0,
        metavar="SECONDS",
        help="for DNS, TCP, TLS and the HTTP upgrade together (default: 5)",
    )
    group.add_argument(
        "--compression",
        action=argparse.BooleanOptionalAction,
        default=compression,
        help=f"offer to compress messages (default: {'yes' if compression else 'no'})",
    )
    group.add_argument("--proxy", metavar="URL", help="HTTP or SOCKS5 proxy; 'env' = as the environment says")
    group.add_argument("--ca", metavar="FILE", help="certificates to trust, instead of the system's")
    group.add_argument("--insecure", action="store_true", help="do not check the server's certificate")


def client_config(url: str, arguments: argparse.Namespace, **options: Any) -> ClientConfig:
    """The config that the connection's options describe. A URL without a scheme is taken for `ws://`.

    Args:
        options: further fields of `ClientConfig`.

    Raises:
        UsageError: a value is not allowed, or does not go with another one.
    """
    try:
        config = ClientConfig(
            url if "://" in url else f"ws://{url}",
            connection_timeout=arguments.timeout,
            headers=HeaderMap(arguments.headers),
            subprotocols=arguments.subprotocols,
            proxy=True if arguments.proxy == "env" else arguments.proxy,
            **options,
        )
        if not arguments.compression:
            config = config.with_compression(None)
        if arguments.origin is not None:
            config = config.with_origin(arguments.origin)
        if config.address.scheme == "wss" and (arguments.insecure or arguments.ca):
            config = replace(config, ssl=_client_context(arguments.ca, arguments.insecure))
    except (TypeError, ValueError, Error) as error:
        raise UsageError(str(error).removeprefix("ClientConfig.")) from None
    return config


def _client_context(ca: str | None, insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except OSError as error:
            raise UsageError(f"--ca {ca}: {error.strerror or error}") from None
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def server_context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """TLS for a server, from PEM files; None where no certificate is given.

    Raises:
        UsageError: a file cannot be read or does not fit the other, or a key comes without a certificate.
    """
    if certificate is None:
        if key is not None:
            raise UsageError("--tls-key needs --tls-cert")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise UsageError(f"--tls-cert {certificate}: {error.strerror or error}") from None
    return context
