"""What can be done to an `ssl.SSLContext`, by the name of the attribute or callback.

With FABRIC_TLS_CONTEXT=NAME in the environment the suite runs its TLS tests only, and each context that is made is
changed so, before the test goes on with it. `make tls-contexts` does it for one change after the other.
"""

from __future__ import annotations

import base64
import functools
import inspect
import ssl
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from support.tls import authority

Proof = Callable[[], object]
Change = Callable[[ssl.SSLContext, Path], Proof]

IS_NEW = sys.version_info >= (3, 13)  # with callbacks for pre-shared keys
IS_NEWER = sys.version_info >= (3, 15)  # with groups, suites and algorithms by name


# Each returns a function that proves that the change had its effect once there was a connection, where there is
# anything to prove.


def nothing() -> bool:
    return True


@functools.cache
def finite_field_group() -> bytes:
    """The group ffdhe2048, as a PEM file has it: p = 2^2048 - 2^1984 + (floor(2^1918 e) + 560316) 2^64 - 1, g = 2.

    Source: RFC 7919, appendix A.1.
    """
    e, term, number = 0, 1 << 2100, 0
    while term:
        e += term
        number += 1
        term //= number
    p = 2**2048 - 2**1984 + ((e >> 2100 - 1918) + 560316) * 2**64 - 1
    numbers = b"\x02\x82\x01\x01\x00" + p.to_bytes(256) + b"\x02\x01\x02"  # in DER, as PKCS #3 has them
    sequence = b"\x30\x82" + len(numbers).to_bytes(2) + numbers
    return b"-----BEGIN DH PARAMETERS-----\n" + base64.encodebytes(sequence) + b"-----END DH PARAMETERS-----\n"


def sni_callback(context: ssl.SSLContext, folder: Path) -> Proof:
    names: list[str | None] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    return lambda: names


def set_servername_callback(context: ssl.SSLContext, folder: Path) -> Proof:
    names: list[str | None] = []
    context.set_servername_callback(lambda _, name, __: names.append(name))
    return lambda: names


def msg_callback(context: ssl.SSLContext, folder: Path) -> Proof:
    messages: list[Any] = []
    context._msg_callback = lambda *about: messages.append(about)  # type: ignore[attr-defined]
    return lambda: messages


def keylog_filename(context: ssl.SSLContext, folder: Path) -> Proof:
    path = folder / f"keys-{id(context)}"
    context.keylog_filename = str(path)
    return lambda: b"CLIENT" in path.read_bytes()


def sslobject_class(context: ssl.SSLContext, folder: Path) -> Proof:
    made: list[object] = []

    class Own(ssl.SSLObject):
        @classmethod
        def _create(cls, *args: Any, **options: Any) -> Any:
            made.append(cls)
            return super()._create(*args, **options)  # type: ignore[misc]

    context.sslobject_class = Own
    return lambda: made


def wrap_bio(context: ssl.SSLContext, folder: Path) -> Proof:
    wrapped: list[object] = []

    def wrap(*args: Any, **options: Any) -> ssl.SSLObject:
        wrapped.append(options)
        return ssl.SSLContext.wrap_bio(context, *args, **options)

    context.wrap_bio = wrap  # type: ignore[method-assign]
    return lambda: wrapped


def maximum_version(context: ssl.SSLContext, folder: Path) -> Proof:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return nothing


def minimum_version(context: ssl.SSLContext, folder: Path) -> Proof:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return nothing


def set_alpn_protocols(context: ssl.SSLContext, folder: Path) -> Proof:
    context.set_alpn_protocols(["http/1.1"])
    return nothing


def set_ciphers(context: ssl.SSLContext, folder: Path) -> Proof:
    context.set_ciphers("ECDHE+AESGCM")
    return nothing


def set_ecdh_curve(context: ssl.SSLContext, folder: Path) -> Proof:
    context.set_ecdh_curve("prime256v1")
    return nothing


def load_dh_params(context: ssl.SSLContext, folder: Path) -> Proof:
    path = folder / "ffdhe2048.pem"
    path.write_bytes(finite_field_group())
    context.load_dh_params(str(path))
    return nothing


def options(context: ssl.SSLContext, folder: Path) -> Proof:
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.options |= getattr(ssl, "OP_ENABLE_KTLS", 0)
    return nothing


def num_tickets(context: ssl.SSLContext, folder: Path) -> Proof:
    if context.protocol is ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return nothing


def post_handshake_auth(context: ssl.SSLContext, folder: Path) -> Proof:
    """A server that would ask for a certificate later does not insist on one in the handshake."""
    context.post_handshake_auth = True
    if context.protocol is ssl.PROTOCOL_TLS_SERVER:
        authority().configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return nothing


def verify_flags(context: ssl.SSLContext, folder: Path) -> Proof:
    context.verify_flags |= ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
    return nothing


def verify_mode(context: ssl.SSLContext, folder: Path) -> Proof:
    if context.protocol is ssl.PROTOCOL_TLS_SERVER:
        authority().configure_trust(context)
        context.verify_mode = ssl.CERT_OPTIONAL
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return nothing


def check_hostname(context: ssl.SSLContext, folder: Path) -> Proof:
    context.check_hostname = False
    return nothing


def hostname_checks_common_name(context: ssl.SSLContext, folder: Path) -> Proof:
    context.hostname_checks_common_name = False
    return nothing


@functools.cache
def another_authority() -> str:
    return trustme.CA().cert_pem.bytes().decode()


def load_verify_locations(context: ssl.SSLContext, folder: Path) -> Proof:
    context.load_verify_locations(cadata=another_authority())
    return nothing


def load_default_certs(context: ssl.SSLContext, folder: Path) -> Proof:
    context.load_default_certs()
    context.set_default_verify_paths()
    return nothing


def load_cert_chain(context: ssl.SSLContext, folder: Path) -> Proof:
    """A certificate of the same names, loaded again: how a server's certificate is renewed."""
    authority().issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return nothing


def sslsocket_class(context: ssl.SSLContext, folder: Path) -> Proof:
    class Own(ssl.SSLSocket):
        pass

    context.sslsocket_class = Own
    return nothing


def security_level(context: ssl.SSLContext, folder: Path) -> Proof:
    context.set_ciphers("DEFAULT:@SECLEVEL=1")
    return nothing


def set_psk_client_callback(context: ssl.SSLContext, folder: Path) -> Proof:
    """None is offered: the handshake goes on with certificates. `test_a_key_that_both_sides_share` has one."""
    if context.protocol is ssl.PROTOCOL_TLS_CLIENT:
        context.set_psk_client_callback(lambda hint: (None, b""))  # type: ignore[attr-defined,unused-ignore]
    return nothing


def set_psk_server_callback(context: ssl.SSLContext, folder: Path) -> Proof:
    if context.protocol is ssl.PROTOCOL_TLS_SERVER:
        context.set_psk_server_callback(lambda identity: b"")  # type: ignore[attr-defined,unused-ignore]
    return nothing


def set_groups(context: ssl.SSLContext, folder: Path) -> Proof:
    context.set_groups("P-256:P-384")  # type: ignore[attr-defined,unused-ignore]
    return nothing


def set_ciphersuites(context: ssl.SSLContext, folder: Path) -> Proof:
    context.set_ciphersuites("TLS_AES_128_GCM_SHA256")  # type: ignore[attr-defined,unused-ignore]
    return nothing


def set_client_sigalgs(context: ssl.SSLContext, folder: Path) -> Proof:
    context.set_client_sigalgs("ECDSA+SHA256:RSA-PSS+SHA256")  # type: ignore[attr-defined,unused-ignore]
    return nothing


def set_server_sigalgs(context: ssl.SSLContext, folder: Path) -> Proof:
    context.set_server_sigalgs("ECDSA+SHA256:RSA-PSS+SHA256:RSA+SHA256")  # type: ignore[attr-defined,unused-ignore]
    return nothing


class Overrides(ssl.SSLContext):
    """As packages make that bring their own way to verify: Python runs where OpenSSL's context is asked."""

    made: list[object]

    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__(name)

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        tls = super().wrap_bio(*args, **options)
        self.made.append(options)
        return tls


def subclass(context: ssl.SSLContext, folder: Path) -> Proof:
    context.__class__ = Overrides
    context.made = made = []  # type: ignore[attr-defined]
    return lambda: made


CHANGES: list[Change] = [
    sni_callback,
    set_servername_callback,
    msg_callback,
    keylog_filename,
    sslobject_class,
    wrap_bio,
    maximum_version,
    minimum_version,
    set_alpn_protocols,
    set_ciphers,
    set_ecdh_curve,
    load_dh_params,
    options,
    num_tickets,
    post_handshake_auth,
    verify_flags,
    verify_mode,
    check_hostname,
    hostname_checks_common_name,
    load_verify_locations,
    load_default_certs,
    load_cert_chain,
    sslsocket_class,
    security_level,
    subclass,
    *([set_psk_client_callback, set_psk_server_callback] if IS_NEW else []),
    *([set_groups, set_ciphersuites, set_client_sigalgs, set_server_sigalgs] if IS_NEWER else []),
]


# The whole suite with one change.

LEFT_OUT = {
    "integration/test_tls_contexts.py": "it changes its contexts itself",
    "integration/test_workers.py": "its servers are other processes, whose contexts stay as they are",
}
"""Tests, by a part of their ids, that no change is tried on, each with the reason."""

WANTS = "integration/test_client_final.py::test_our_server_says_that_it_wants_a_certificate"
OPPOSED = {
    "maximum_version": {"TLSv1_3": "it asks for this version"},
    "minimum_version": {"TLSv1_2": "it asks for this version"},
    "post_handshake_auth": {
        "integration/test_client_final.py::test_a_certificate": "they are asked for in TLS 1.2 only, but always",
        WANTS: "likewise",
        "integration/test_request_state.py::test_the_certificate_of_a_client": "likewise",
    },
}
"""Change -> tests, likewise, that say the opposite of it."""

SUITE = ("fault.", "integration.", "support.", "unit.", "test_", "tests.")
"""How the names of the suite's modules begin."""


class EachContext:
    """A plugin of pytest: each context that is made in this process is changed by `change`."""

    def __init__(self, change: Change) -> None:
        self.change = change
        self.folder = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()

    def pytest_sessionstart(self) -> None:
        make = ssl.SSLContext.__new__

        def make_changed(cls: type[ssl.SSLContext], *args: Any, **options: Any) -> ssl.SSLContext:
            context = make(cls, *args, **options)
            if fits(self.change, context):
                self.change(context, Path(self.folder.name))
            return context

        self.patch.setattr(ssl.SSLContext, "__new__", make_changed)

    def pytest_sessionfinish(self) -> None:
        self.patch.undo()
        self.folder.cleanup()

    def pytest_report_header(self) -> str:
        return f"FABRIC_TLS_CONTEXT={self.change.__name__}"

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left_out = LEFT_OUT | OPPOSED.get(self.change.__name__, {})
        out = [item for item in items if not uses_tls(item) or any(part in item.nodeid for part in left_out)]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in set(out)]


def fits(change: Change, context: ssl.SSLContext) -> bool:
    """Is `context` to be changed so?

    A client's takes no callback for names, and whether it has a certificate is for the test to say. One of a class of
    its own keeps that.
    """
    if change in (sni_callback, set_servername_callback, load_cert_chain):
        return context.protocol is ssl.PROTOCOL_TLS_SERVER
    return change is not subclass or type(context) is ssl.SSLContext


def each_context(name: str) -> EachContext:
    """The plugin for the change of this name."""
    for change in CHANGES:
        if change.__name__ == name:
            return EachContext(change)
    raise pytest.UsageError(f"FABRIC_TLS_CONTEXT={name}: there are " + ", ".join(each.__name__ for each in CHANGES))


def uses_tls(item: pytest.Item) -> bool:
    """Does a test make a TLS context? Its code names one, or a fixture or function of the suite that does."""
    if not isinstance(item, pytest.Function):
        return False
    values = item.callspec.params if hasattr(item, "callspec") else {}
    if values.get("secure") is False or "plain" in item.name.split("[")[-1].rstrip("]").split("-"):
        return False
    fixtures = [each[-1].func for each in item._fixtureinfo.name2fixturedefs.values()]
    return any(names_tls(each) for each in (item.function, *fixtures, *filter(callable, values.values())))


@functools.cache
def names_tls(function: Callable[..., object]) -> bool:
    seen: set[int] = set()
    waiting: list[object] = [function]
    while waiting:
        value = waiting.pop()
        if callable(value):
            value = inspect.unwrap(value)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, functools.partial):
            waiting.append(value.func)
        elif isinstance(value, types.MethodType):
            waiting.append(value.__func__)
        elif isinstance(value, type) and value.__module__.startswith(SUITE):
            waiting.extend(vars(value).values())
        elif isinstance(value, types.FunctionType) and value.__module__.startswith(SUITE):
            names = set(names_of(value.__code__))
            if names & {"SSLContext", "create_default_context"}:
                return True
            used = [value.__globals__[name] for name in names if name in value.__globals__]
            waiting.extend(each for each in used if asks_for_tls(value.__code__) or not is_plain_by_default(each))
    return False


def is_plain_by_default(value: object) -> bool:
    """Has `value` an argument `secure` that is false where it is not given?"""
    return callable(value) and (getattr(inspect.unwrap(value), "__kwdefaults__", None) or {}).get("secure") is False


def asks_for_tls(code: types.CodeType) -> bool:
    return "secure" in code.co_varnames or any(isinstance(each, tuple) and "secure" in each for each in code.co_consts)


def names_of(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_of(constant)


if __name__ == "__main__":
    print(*(each.__name__ for each in CHANGES))
