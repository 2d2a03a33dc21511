"""fabric_ext.transport: what it uses of picows, which a release of picows may change, and what it makes of that.

Where a test here fails after picows was updated, fabric_ext/transport.pyx and PICOWS_MINOR are to be looked at.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import picows
import pytest

import fabric_ext
from fabric_ext.connection import Connection
from fabric_ext.counters import Counters
from fabric_ext.session import SessionProtocol
from fabric_ext.transport import Transport
from support.fake_transport import FakeTransport
from support.frames import BINARY, PING, Wire, decode_all

DEBUG = "debug" in Path(fabric_ext.__file__).parts  # assertions are compiled in: `make debug`

# What fabric_ext/transport.pyx uses of `WSTransport`, as picows.pxd declares it, and what for.
USED = {
    "unsigned long _thread_id": "to refuse calls from other threads",
    "int _socket": "the descriptor that large payloads are written to",
    "readonly bint is_secure": "to write nothing past TLS",
    "object _tr_write": "is replaced by the transport itself, which sees first what the kernel does not take",
    "object _tr_get_write_buffer_size": "is replaced, since we know that the loop's transport holds nothing",
    "readonly object underlying_transport": "is let go when the transport is lost",
    "object disconnected_future": "is let go, since picows' protocol is not used",
    "MemoryBuffer _write_buffer": "is shared, since picows builds no frames for us",
    "NoResult _fast_write(self, char* ptr, Py_ssize_t sz)": "writes the gathered frames",
}


@pytest.fixture
def kernel() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


def connect(transport: FakeTransport) -> tuple[Connection, Any]:
    connection = Connection(asyncio.get_running_loop(), Counters(), queue_limit=9, queue_byte_limit=1 << 20)
    transport.connect(connection, cork=False)
    return connection, connection._session_now


def calls(far: socket.socket) -> list[bytes]:
    """What was sent, one item for each system call."""
    found = []
    while True:
        try:
            found.append(far.recv(1 << 20))
        except BlockingIOError:
            return found


# --- what picows has ---------------------------------------------------------------------------------------


def test_the_release_is_of_the_series_that_the_build_was_made_for() -> None:
    assert picows.__version__.startswith(f"{fabric_ext.PICOWS_MINOR}.")  # type: ignore[attr-defined]


def test_another_series_is_refused_by_a_sentence_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picows, "__version__", "9.1.0")
    with pytest.raises(ImportError, match=r"cannot run on picows 9\.1\.0; install it with: pip install 'picows~="):
        fabric_ext._check_picows()


@pytest.mark.parametrize("declaration", USED)
def test_what_is_used_of_picows_is_still_declared(declaration: str) -> None:
    text = importlib.resources.files("picows").joinpath("picows.pxd").read_text()
    body = text.partition("cdef class WSTransport:")[2]
    body = re.split(r"^cdef ", body, maxsplit=1, flags=re.MULTILINE)[0]
    found = {" ".join(line.partition("#")[0].split()) for line in body.splitlines()}
    assert any(re.search(rf"(^|\s){re.escape(declaration)}( |$)", line) for line in found), (
        f"picows {picows.__version__} does not declare `{declaration}` in WSTransport any more;"  # type: ignore[attr-defined]
        f" fabric_ext/transport.pyx uses it: {USED[declaration]}"
    )


def test_it_is_picows_transport() -> None:
    assert issubclass(Transport, picows.WSTransport), "picows.WSTransport is what fabric_ext.transport adds to"


# --- what picows does --------------------------------------------------------------------------------------


async def test_gathered_bytes_go_from_its_writer_to_the_kernel(kernel: tuple[socket.socket, socket.socket]) -> None:
    near, far = kernel
    transport = FakeTransport(near)
    connection, _ = connect(transport)
    connection.send_nowait(b"x" * 1000)
    sent = calls(far)
    assert transport.written == [], "picows' _fast_write does not write to the socket itself any more"
    assert len(sent) == 1, "picows' _fast_write cuts what it writes"
    assert decode_all(sent[0]) == [Wire(BINARY, b"x" * 1000)]


async def test_it_asks_us_before_it_writes_past_the_transport(kernel: tuple[socket.socket, socket.socket]) -> None:
    near, far = kernel
    transport = FakeTransport(near)
    connection, _ = connect(transport)
    transport.held = 1  # behind our back
    if DEBUG:
        with pytest.raises(AssertionError, match="written past bytes that the loop's transport holds"):
            connection.send_nowait(b"x")
        return
    connection.send_nowait(b"x")
    assert len(calls(far)) == 1, "picows' _fast_write asks the loop's transport, and not us"


async def test_what_the_kernel_refuses_comes_to_us_as_bytes() -> None:
    transport = FakeTransport()
    connection, _ = connect(transport)
    connection.send_nowait(b"x")
    assert list(map(type, transport.written)) == [bytes], "picows' _fast_write does not hand a copy to _tr_write"
    assert decode_all(transport.output) == [Wire(BINARY, b"x")]


async def test_what_is_secure_is_never_written_past_its_transport(kernel: tuple[socket.socket, socket.socket]) -> None:
    near, far = kernel
    transport = FakeTransport(near, secure=True)
    connection, _ = connect(transport)
    connection.send_nowait(b"x")
    assert calls(far) == [], "picows takes a transport with an ssl_object for a plain one"
    assert decode_all(transport.output) == [Wire(BINARY, b"x")]


async def test_it_belongs_to_the_thread_that_made_it() -> None:
    connection, _ = connect(FakeTransport())
    raised: list[BaseException] = []

    def send() -> None:
        try:
            connection.send_nowait(b"x")
        except Exception as error:  # noqa: BLE001 (it is looked at)
            raised.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    assert "belongs to another thread" in str(raised[0]), "picows' _thread_id is not that of the making thread"


# --- what we make of it ------------------------------------------------------------------------------------


async def test_what_the_transport_holds_from_the_handshake_goes_first(
    kernel: tuple[socket.socket, socket.socket],
) -> None:
    near, far = kernel
    transport = FakeTransport(near)
    transport.held = 100  # of the answer to the opening handshake
    connection, session = connect(transport)
    assert connection._is_blocked
    session.write_ping(b"later")
    connection.flush()
    assert calls(far) == []
    transport.release()
    await asyncio.sleep(0)
    assert decode_all(b"".join(calls(far))) == [Wire(PING, b"later")]


async def test_nothing_is_written_to_a_descriptor_that_is_another_s_by_now() -> None:
    near, far = socket.socketpair()
    with far:
        transport = FakeTransport(near)
        connection, session = connect(transport)
        number = near.fileno()
        transport.lose()
        near.close()
    other, its_peer = socket.socketpair()
    with other, its_peer:
        assert number in (other.fileno(), its_peer.fileno()), "the number is used again"
        for end in (other, its_peer):
            end.setblocking(False)
        session.write_ping(b"x")
        connection.flush()
        assert session.unsent_bytes == 0
        for end in (other, its_peer):
            with pytest.raises(BlockingIOError):
                end.recv(10)
    assert transport.written == []


async def test_a_transport_is_let_go_when_it_is_lost() -> None:
    transport = FakeTransport()
    _, session = connect(transport)
    before = sys.getrefcount(transport)
    transport.lose()
    assert session.io is None
    assert sys.getrefcount(transport) < before


async def test_a_session_is_what_asyncio_takes_for_a_buffered_protocol() -> None:
    """uvloop and asyncio look for the class, aiofastnet too."""
    assert issubclass(SessionProtocol, asyncio.BufferedProtocol)
    assert SessionProtocol.data_received is None, "uvloop would keep the protocol of the opening handshake"
    assert not issubclass(SessionProtocol, asyncio.Protocol)
