"""`fabric._handshake.tls`: which engine a context gets, what a failure is called, what the loop hears of."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric._handshake import tls
from fabric._handshake.tls import TlsLoop, tls_context, tls_failure


class Own(ssl.SSLContext):
    """As packages make that bring their own way to verify."""


def is_direct(given: Any) -> bool:
    """Whether aiofastnet takes its direct engine, as it asks itself."""
    return not getattr(given, "_aiofastnet_force_fallback_ssl", False)


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The default context is made anew in this test, and after it."""
    monkeypatch.delenv("SSLKEYLOGFILE", raising=False)
    tls.default_context.cache_clear()
    yield monkeypatch
    tls.default_context.cache_clear()


# The engine.


@pytest.mark.usefixtures("anew")
def test_the_context_that_is_made_here_is_served_directly() -> None:
    context = tls.default_context()
    assert tls.default_context() is context
    assert tls_context(None) is context
    assert not is_direct(tls_context(context))  # whoever has got hold of it may change it
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize(
    "make",
    [
        ssl.create_default_context,
        lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        lambda: Own(ssl.PROTOCOL_TLS_CLIENT),
    ],
)
def test_a_context_that_is_given_is_served_by_the_module(make: Callable[[], ssl.SSLContext]) -> None:
    context = make()
    before = dict(vars(context))
    given = tls_context(context)
    assert not is_direct(given)
    assert isinstance(given, ssl.SSLContext)  # aiofastnet.start_tls asks
    assert given.check_hostname == context.check_hostname
    assert given.wrap_bio == context.wrap_bio
    assert vars(context) == before
    with pytest.raises(AttributeError):
        _ = given.no_such_thing


def test_where_a_context_is_given_none_is_made(anew: pytest.MonkeyPatch) -> None:
    """Making one takes time, and fails where SSLKEYLOGFILE cannot be written, say."""
    context = ssl.create_default_context()
    anew.setattr(ssl, "create_default_context", lambda: pytest.fail("another one was made"))
    assert not is_direct(tls_context(context))


def test_the_default_context_with_a_key_log_is_served_by_the_module(anew: pytest.MonkeyPatch, tmp_path: Path) -> None:
    anew.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    tls.default_context.cache_clear()
    assert not is_direct(tls_context(None))


def test_a_default_context_of_another_class_is_served_by_the_module(anew: pytest.MonkeyPatch) -> None:
    """As after `truststore.inject_into_ssl()`."""
    anew.setattr(ssl, "create_default_context", lambda: Own(ssl.PROTOCOL_TLS_CLIENT))
    tls.default_context.cache_clear()
    assert not is_direct(tls_context(None))


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize(
    ("name", "value"),
    [("wrap_bio", lambda *_: None), ("_msg_callback", lambda *_: None), ("post_handshake_auth", True)],
)
def test_a_default_context_that_was_changed_is_served_by_the_module(name: str, value: object) -> None:
    context = tls.default_context()
    setattr(context, name, value)
    assert not is_direct(tls_context(None))


# Failures.


def failed(reason: str | None, text: str = "words") -> ssl.SSLError:
    error = ssl.SSLError(1, text)
    error.reason = reason  # type: ignore[assignment]
    return error


def test_a_certificate_that_is_not_accepted() -> None:
    error = ssl.SSLCertVerificationError(1, "words")
    error.reason, error.verify_message = "CERTIFICATE_VERIFY_FAILED", "certificate has expired"
    failure = tls_failure("TLS handshake with h", error)
    assert str(failure) == "TLS handshake with h failed: certificate not accepted, certificate has expired"
    assert failure.certificate_rejected
    assert failure.reason == "CERTIFICATE_VERIFY_FAILED"


def test_a_certificate_that_is_not_accepted_without_a_reason() -> None:
    failure = tls_failure("TLS handshake with h", ssl.SSLCertVerificationError("made by hand"))
    assert failure.certificate_rejected
    assert "made by hand" in str(failure)


@pytest.mark.parametrize(
    ("error", "reason", "why"),
    [
        (failed("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "TLSV13_ALERT_CERTIFICATE_REQUIRED", "TLSV13_ALERT_CERTIFICATE"),
        (failed("WRONG_VERSION_NUMBER"), "WRONG_VERSION_NUMBER", r"the answer is not TLS \(WRONG_VERSION_NUMBER\)"),
        (failed("HTTP_REQUEST"), "HTTP_REQUEST", "the answer is not TLS"),
        (failed(None), "", "words"),
        (failed(""), "", "words"),
        (ssl.SSLError(1, "made by hand"), "", "made by hand"),
    ],
)
def test_other_failures_are_no_verdict_on_a_certificate(error: ssl.SSLError, reason: str, why: str) -> None:
    failure = tls_failure("TLS handshake with h", error)
    assert not failure.certificate_rejected
    assert failure.reason == reason
    with pytest.raises(type(failure), match=f"TLS handshake with h failed: {why}"):
        raise failure


# The loop.


async def test_other_reports_pass(loop_reports: list[str]) -> None:
    loop = asyncio.get_running_loop()
    quiet: Any = TlsLoop(loop)
    assert isinstance(quiet, type(loop))
    assert quiet.time() <= loop.time()
    for error in (ConnectionResetError("mid-way"), ValueError("a bug"), None):
        quiet.call_exception_handler({"message": "SSL handshake failed", "exception": error})
    quiet.call_exception_handler({"message": "SSL handshake failed", "exception": ConnectionResetError})
    assert len(loop_reports) == 3
    loop_reports.clear()
