"""An authority, and TLS contexts of servers and clients that trust it."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from fabric._handshake import tls


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(*names: str) -> ssl.SSLContext:
    """A server's context with a certificate for `names`, by default the loopback's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*(names or ("localhost", "127.0.0.1", "::1"))).configure_cert(context)
    return context


def certificate_file(folder: Path) -> Path:
    """A file with key and certificate for the loopback, for a server in another process."""
    path = folder / "server.pem"
    certificate = authority().issue_cert("localhost", "127.0.0.1", "::1")
    path.write_bytes(certificate.private_key_and_cert_chain_pem.bytes())
    return path


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def with_certificate(context: ssl.SSLContext) -> ssl.SSLContext:
    """The client's `context`, with a certificate to show."""
    authority().issue_cert("client.invalid").configure_cert(context)
    return context


@contextmanager
def trusted_by_the_system(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """A client without a context of its own trusts the authority: what it makes by itself is made anew."""
    pem = folder / "authority.pem"
    pem.write_bytes(authority().cert_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    tls.default_context.cache_clear()
    try:
        yield
    finally:
        tls.default_context.cache_clear()
