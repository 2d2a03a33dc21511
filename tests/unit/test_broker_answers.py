"""Answers of brokers with histories that are none: nobody waits for them, and they confirm nothing."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fabric.broker import BrokerUnavailable, jetstream
from fabric.broker.jetstream import JetStream
from fabric.broker.streams import Streams
from support.serving import turns, until


class Script(asyncio.Transport):
    """A connection to a Redis whose scripts answer what a test wants."""

    def __init__(self, protocol: asyncio.Protocol, answer: bytes) -> None:
        super().__init__()
        self.protocol = protocol
        self.answer = answer

    def write(self, data: bytes | bytearray | memoryview) -> None:
        answer = self.answer if b"EVALSHA" in bytes(data) else b"+OK\r\n"
        asyncio.get_running_loop().call_soon(self.protocol.data_received, answer)

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.protocol.connection_lost(None)


@pytest.mark.parametrize(
    "answer",
    [
        b"*2\r\n:5\r\n$1\r\n1\r\n",
        b"*2\r\n$-1\r\n:1\r\n",
        b"*2\r\n$1\r\n\xff\r\n:1\r\n",
        b"*2\r\n$1\r\ne\r\n*0\r\n",
        b"*0\r\n",
        b":7\r\n",
        b"+OK\r\n",
        b"$-1\r\n",
        b"*5\r\n:1\r\n:2\r\n:3\r\n:4\r\n:5\r\n",
        b"*5\r\n$1\r\n\xff\r\n:2\r\n:3\r\n:4\r\n*0\r\n",
        b"*5\r\n$1\r\ne\r\n$1\r\nx\r\n:3\r\n:4\r\n*0\r\n",
        b"*5\r\n$1\r\ne\r\n:2\r\n:3\r\n:4\r\n*1\r\n:1\r\n",
        b"*5\r\n$1\r\ne\r\n:2\r\n:3\r\n:4\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*4\r\n:1\r\n:1\r\n:1\r\n:1\r\n",
        b"-ERR wrong\r\n",
    ],
)
async def test_nobody_waits_for_what_redis_answers_with_nonsense(answer: bytes) -> None:
    async def connect(make: Any) -> Any:
        connection = make()
        connection.connection_made(Script(connection, answer))
        return connection

    streams = Streams(connect, lambda what, error: BrokerUnavailable(f"{what}: {error}"), "node", 1000)
    with pytest.raises(BrokerUnavailable):
        await streams.append("a", b"a", b"x", 1, 10, 1.0, None)
    with pytest.raises(BrokerUnavailable):
        await streams.read("a", 10, 1.0, None, 0, wait=True)
    with pytest.raises(BrokerUnavailable):
        await streams.peek("a", 1.0, None, None, reverse=True)
    await streams.close(0.0)


EPOCH = "e" * 16
ABOUT = {
    "config": {"name": f"fabric-{EPOCH}", "max_msgs_per_subject": 1000, "max_age": 10**16},
    "state": {"first_seq": 1, "last_seq": 5},
    "created": "2020-01-01T00:00:00Z",
    "ts": "2026-01-01T00:00:00Z",
}


class Asked:
    """Of nats-py's client what asks JetStream; `answers` has those to questions with a word in their subject."""

    _server_info = {"version": "2.10.0", "jetstream": True}  # noqa: RUF012
    max_payload = 1 << 20

    def __init__(self, **answers: bytes) -> None:
        self.answers = {
            "NAMES": json.dumps({"streams": [f"fabric-{EPOCH}"]}).encode(),
            "INFO": json.dumps(ABOUT).encode(),
            "CREATE": b'{"name": "c", "num_pending": 0, "ts": "2026-01-01T00:00:00Z"}',
        } | answers

    async def request(self, subject: str, data: bytes, timeout: float) -> Any:
        return SimpleNamespace(data=next(answer for word, answer in self.answers.items() if word in subject))

    def new_inbox(self) -> str:
        return "inbox"

    async def subscribe(self, inbox: str) -> Any:
        return SimpleNamespace(subject=inbox, unsubscribe=turns)

    async def publish(self, subject: str, data: bytes, reply: str) -> None:
        pass


def histories(client: Any, send: Callable[[bytes], object]) -> JetStream:
    streams = JetStream(lambda what, error: BrokerUnavailable(f"{what}: {error}"), 1000)
    streams.connected(client, send)
    return streams


NONSENSE = [b"", b"[]", b"5", b"{", b"null", b"\xff", b"[" * 100_000, b'{"error": "x"}']


@pytest.mark.parametrize("question", ["NAMES", "INFO", "CREATE"])
@pytest.mark.parametrize("answer", [*NONSENSE, b'{"streams": 5, "config": {}}', b'{"streams": [5], "created": 5}'])
async def test_nobody_waits_for_what_jetstream_answers_with_nonsense(
    question: str, answer: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked again and again, and that is logged once."""
    monkeypatch.setattr(jetstream, "RETRY", 0.0)
    streams = histories(Asked(**{question: answer}), lambda _: None)
    with pytest.raises(BrokerUnavailable):
        await streams.peek("a", 10, 1.0)
    appended = streams.append("a", b"x", 1, 10, 1.0)
    await turns(100)
    await streams.close(0.0)
    assert appended.done()
    assert len([record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]) <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        *NONSENSE,
        b"{}",
        b'{"stream": 5, "seq": 6}',
        b'{"stream": ["fabric-eeeeeeeeeeeeeeee"], "seq": 6}',
        b'{"stream": "fabric-eeeeeeeeeeeeeeee", "seq": "6"}',
        b'{"stream": "fabric-eeeeeeeeeeeeeeee", "seq": -6}',
        b'{"stream": "fabric-eeeeeeeeeeeeeeee", "seq": 6, "error": 5}',
    ],
)
async def test_what_is_no_acknowledgement_confirms_nothing(wrong: bytes) -> None:
    """The message is sent again."""
    said: list[bytes] = []

    def replies() -> list[str]:
        """The topics on which acknowledgements of the message are awaited."""
        return re.findall(r"HPUB \S+ _INBOX\.(\S+)", b"".join(said).decode(errors="replace"))

    streams = histories(Asked(), said.append)
    appended = streams.append("a", b"x", 7, 10, 1.0)
    await until(replies)
    topic = replies()[0]
    others = [("a", b"x"), (topic + "\u0663", wrong), (topic + "9" * 5000, wrong)]
    assert streams.taken_out([*others, (topic, wrong)]) == others[:1]
    await until(lambda: len(replies()) == 2)
    assert not appended.done()
    right = json.dumps({"stream": f"fabric-{EPOCH}", "seq": 6}).encode()
    assert streams.taken_out([(topic, right)]) == []
    assert appended.result() == (EPOCH, 6)
    await streams.close(0.0)
