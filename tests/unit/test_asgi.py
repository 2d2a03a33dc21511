"""fabric_ext.asgi: messages as events, and when reading stops; fabric.asgi: what it says at start."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

import fabric.asgi
from fabric_ext.asgi import AsgiConnection
from support.fake_transport import FakeTransport, in_loop
from support.frames import BINARY, CLOSE, TEXT, decode_all, encode


class Lost(OSError):
    pass


class Peer(AsgiConnection):
    """Notes what it is told."""

    def __init__(self, *, max_queue: int = 8, max_queue_bytes: int = 1000, write_limit: int = 100) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop, max_queue=max_queue, max_queue_bytes=max_queue_bytes, write_limit=write_limit)
        self.told: list[Any] = []

    def open(self, **options: Any) -> FakeTransport:
        return FakeTransport().connect(self, **{"cork": False, **options})

    def _on_closing(self) -> None:
        self.told.append("closing")

    def _on_lost(self, session: Any) -> None:
        self._finish_with({"type": "websocket.disconnect"}, Lost())

    def _on_writable(self) -> None:
        self.told.append("writable")

    async def _send_event(self, event: Any) -> None:
        self.told.append(event)

    async def _drain(self) -> None:
        self.told.append("drain")


def texts(*values: str) -> bytes:
    return b"".join(encode(TEXT, value) for value in values)


async def taken(peer: Peer) -> Any:
    """The next message, which must be there."""
    event = await asyncio.wait_for(peer.receive(), 10)
    assert event.pop("type") == "websocket.receive"
    ((_, value),) = event.items()
    return value


async def test_messages_become_events() -> None:
    peer = Peer()
    transport = peer.open()
    transport.feed(encode(TEXT, "é") + encode(BINARY, b"\xff") + encode(TEXT, ""))
    assert await peer.receive() == {"type": "websocket.receive", "text": "é"}
    assert await peer.receive() == {"type": "websocket.receive", "bytes": b"\xff"}
    assert await peer.receive() == {"type": "websocket.receive", "text": ""}
    event = {"type": "websocket.connect"}
    peer._put(event)
    assert await peer.receive() is event


async def test_each_event_is_a_dict_of_its_own() -> None:
    peer = Peer()
    peer.open().feed(texts("a", "a"))
    first, second = await peer.receive(), await peer.receive()
    assert first == second
    assert first is not second


async def test_a_waiting_task_gets_what_one_read_brings() -> None:
    peer = Peer()
    transport = peer.open()
    got: list[str] = []

    async def receive() -> None:
        while (event := await peer.receive())["type"] == "websocket.receive":
            got.append(event["text"])

    task = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    values = [f"{number}" for number in range(40)]
    await in_loop(lambda: transport.feed(texts(*values)))
    assert got == values
    await in_loop(transport.lose)
    await task


async def test_a_queue_full_of_messages_stops_reading() -> None:
    peer = Peer(max_queue=4)
    transport = peer.open()
    transport.feed(texts("1", "2", "3", "4"))
    assert transport.reading
    transport.feed(texts("5"))
    assert not transport.reading
    for expected in "12":
        assert await taken(peer) == expected
        assert not transport.reading
    assert await taken(peer) == "3"
    assert transport.reading


async def test_a_queue_full_of_bytes_stops_reading() -> None:
    peer = Peer(max_queue_bytes=100)
    transport = peer.open()
    transport.feed(encode(BINARY, b"x" * 60) + encode(TEXT, "y" * 41))
    assert not transport.reading
    assert len(await taken(peer)) == 60
    assert transport.reading
    transport.feed(encode(BINARY, b"x" * 60))
    assert not transport.reading
    assert len(await taken(peer)) == 41
    assert not transport.reading
    assert len(await taken(peer)) == 60
    assert transport.reading


async def test_what_comes_after_the_end_is_thrown_away() -> None:
    peer = Peer()
    transport = peer.open()
    transport.feed(texts("before"))
    peer._finish_with({"type": "websocket.disconnect", "code": 1}, Lost())
    peer._finish_with({"type": "websocket.disconnect", "code": 2}, Lost())
    transport.feed(texts(*["after"] * 20))
    assert transport.reading
    assert await taken(peer) == "before"
    assert await peer.receive() == {"type": "websocket.disconnect", "code": 1}
    for _ in range(2):
        with pytest.raises(Lost):
            await peer.receive()
    assert peer.queued == 0


async def test_a_lost_connection() -> None:
    peer = Peer()
    transport = peer.open()
    waiting = asyncio.ensure_future(peer.receive())
    await asyncio.sleep(0)
    transport.lose()
    assert await waiting == {"type": "websocket.disconnect"}
    assert peer._session_now is None
    await peer.send({"type": "websocket.send", "text": "x"})
    assert peer.told == [{"type": "websocket.send", "text": "x"}]


async def test_hanging_up_sends_what_was_sent_and_no_close_frame() -> None:
    peer = Peer()
    transport = peer.open(cork=True)
    for text in ("a", "b", "c"):
        await peer.send({"type": "websocket.send", "text": text})
    peer._hang_up()
    assert transport.closing
    assert not transport.aborted
    assert [wire.payload for wire in decode_all(transport.output)] == [b"a", b"b", b"c"]
    peer._hang_up()
    transport.lose()
    peer._hang_up()


async def test_sending_writes_first_and_waits_afterwards() -> None:
    peer = Peer(write_limit=100)
    transport = peer.open()
    transport.keeps = True
    await peer.send({"type": "websocket.send", "bytes": b"x" * 90})
    assert peer.told == []
    await peer.send({"type": "websocket.send", "text": "y" * 90})
    assert peer.told == ["drain"]
    transport.release()
    await asyncio.sleep(0)
    assert peer.told == ["drain", "writable"]
    assert [wire.payload for wire in decode_all(transport.output)] == [b"x" * 90, b"y" * 90]


@pytest.mark.parametrize("end", ["close", "loss"])
async def test_what_ends_the_connection_while_it_becomes_bytes_goes_to_python(end: str) -> None:
    peer = Peer()
    transport = peer.open()

    class Ends(bytearray):
        def __bytes__(self) -> bytes:
            if end == "loss":
                transport.lose()
            else:
                session.begin_close(1000, "")
            return b"data"

    session = peer._session_now
    event = {"type": "websocket.send", "bytes": Ends()}
    await peer.send(event)
    assert [frame.opcode for frame in decode_all(transport.output)] == ([CLOSE] if end == "close" else [])
    assert peer.told[-1] is event


async def test_another_receiver_may_take_the_last_event_while_reading_begins_again() -> None:
    peer = Peer(max_queue=0)
    transport = peer.open()
    transport.feed(texts("1"))
    assert not transport.reading
    events: list[Any] = []

    def take() -> None:
        del transport.resume_reading  # once
        transport.resume_reading()
        other = peer.receive()
        with pytest.raises(StopIteration) as stop:
            other.send(None)
        events.append(stop.value.value)

    transport.resume_reading = take  # type: ignore[method-assign]
    task = asyncio.ensure_future(peer.receive())
    await asyncio.sleep(0)
    assert events == [{"type": "websocket.receive", "text": "1"}]
    await in_loop(lambda: transport.feed(texts("2")))
    assert (await task)["text"] == "2"


async def test_what_is_no_message_goes_to_python() -> None:
    peer = Peer()
    await peer.send({"type": "websocket.send", "text": "not open yet"})
    peer.open()
    others: list[Any] = [{"type": "websocket.close"}, {}, None, [1], {"type": 5}]
    for event in others:
        await peer.send(event)
    assert peer.told == [{"type": "websocket.send", "text": "not open yet"}, *others]


async def test_send_begins_when_it_is_awaited() -> None:
    peer = Peer()
    transport = peer.open()
    sending = peer.send({"type": "websocket.send", "text": "x"})
    assert transport.output == b""
    await sending
    assert transport.output
    with pytest.raises(RuntimeError, match="already been awaited"):
        await sending
    with pytest.warns(RuntimeWarning, match="never awaited"):
        peer.send({"type": "websocket.send", "text": "x"})


# --- fabric.asgi -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.34.0", "0.40.1", "0.54.0", "0.54.9.dev1"])
def test_versions_that_were_tried(version: str, caplog: pytest.LogCaptureFixture) -> None:
    fabric.asgi._look_at_version(version)
    assert caplog.text == ""


@pytest.mark.parametrize("version", ["0.33.9", "0.55.0", "1.0", "1.0.0rc1", "unknown"])
def test_a_version_that_was_not_tried_is_named(version: str, caplog: pytest.LogCaptureFixture) -> None:
    fabric.asgi._look_at_version(version)
    (record,) = caplog.records
    assert record.name == "fabric.asgi"
    assert record.getMessage() == (
        f"uvicorn {version}: fabric.asgi has been tried with 0.34 to 0.54, not with this version"
    )


def python(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_importing_fabric_imports_nothing_of_it() -> None:
    done = python("import sys, fabric; print([name for name in sys.modules if 'asgi' in name or 'uvicorn' in name])")
    assert done.stdout == "[]\n"


def test_without_uvicorn_a_sentence_names_the_extra() -> None:
    done = python("import sys; sys.modules['uvicorn'] = None; import fabric.asgi")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: fabric.asgi serves WebSockets for uvicorn, which is not installed: "
        "pip install 'websocket-fabric[asgi]'"
    )


def test_the_worker_names_what_it_needs() -> None:
    done = python("import sys; sys.modules['uvicorn_worker'] = None; from fabric.asgi import UvicornWorker")
    assert done.returncode == 1
    assert "pip install gunicorn uvicorn-worker" in done.stderr.splitlines()[-1]


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match=r"module 'fabric.asgi' has no attribute 'Nothing'"):
        _ = fabric.asgi.Nothing
