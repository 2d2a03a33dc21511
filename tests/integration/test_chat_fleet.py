"""The chat on several processes, `examples/chat_fleet`: started as it says, and spoken with, also as no page would."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fabric import ConnectionClosed, HandshakeFailed, WebSocketClient
from integration.test_workers import Program, closed, gone
from support.brokers import RedisServer
from support.pages import ROOT

Stack = contextlib.AsyncExitStack
CHAT = ROOT / "examples/chat_fleet/serve.py"

pytestmark = [
    pytest.mark.parametrize("loop_factory", ["asyncio"], indirect=True),  # the program is what is tested
    pytest.mark.deadline(120),  # it starts interpreters, on a machine that may stall
]


@pytest.fixture
def redis(require: Callable[[object, str], None]) -> None:
    require(RedisServer.program(), "neither redis-server nor valkey-server is installed")


async def started(stack: Stack, folder: Path, *arguments: str, **environment: str) -> Program:
    """The program, when all of its processes are ready."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        CHAT,
        "--bind=127.0.0.1:0",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    stack.push_async_callback(gone, process)
    program = Program(process, CHAT, "ws")
    program.port = int((await program.until(r"^\d workers? listens? on \('127.0.0.1', (\d+)\)"))[1])
    return program


def processes(program: Program) -> dict[int, int]:
    """The process of each worker, as far as the program has told."""
    return {
        int(number): int(pid) for number, pid in re.findall(r"worker (\d) \(process (\d+)\) is ready", program.said)
    }


class Visitor:
    """One who speaks as the page does, or otherwise."""

    def __init__(self, client: WebSocketClient) -> None:
        self.client = client

    async def say(self, kind: str, **said: Any) -> None:
        await self.client.send_json({"type": kind, **said})

    async def hear(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """The next of this kind, with these values."""
        async for message in self.client:
            said: dict[str, Any] = message.json()
            if said["type"] == kind and wanted.items() <= said.items():
                return said
        raise AssertionError("the connection has ended")


async def visit(stack: Stack, program: Program, name: str, **more: Any) -> Visitor:
    """Connect, and say hello."""
    url = f"ws://127.0.0.1:{program.port}/chat"
    client = await WebSocketClient.connect(url, auto_reconnect=False, connection_timeout=60)
    visitor = Visitor(await stack.enter_async_context(client))
    await visitor.say("hello", name=name, **more)
    return visitor


async def come(stack: Stack, program: Program, name: str, room: str = "lobby") -> Visitor:
    """The same, and into a room."""
    visitor = await visit(stack, program, name)
    await visitor.hear("welcome")
    await visitor.say("enter", room=room)
    await visitor.hear("people", room=room)
    return visitor


async def test_both_processes_are_one_chat(redis: None, stack: Stack, tmp_path: Path) -> None:
    program = await started(stack, tmp_path)
    ada = await visit(stack, program, "Ada")
    home = await ada.hear("welcome")
    grace = await visit(stack, program, "Grace")
    far = await grace.hear("welcome")
    while far["worker"] == home["worker"]:  # it is the one with the fewest connections, as far as the parent knows
        await grace.client.close()
        grace = await visit(stack, program, "Grace", key=far["key"])
        far = await grace.hear("welcome")
    for visitor in (ada, grace):
        await visitor.say("enter", room="lobby")
        await visitor.hear("person", name="Grace" if visitor is grace else "Ada", here=True)
    await ada.hear("person", name="Grace", here=True)

    await ada.say("say", text="hello")
    line = await grace.hear("line")
    assert (line["room"], line["name"], line["text"]) == ("lobby", "Ada", "hello")
    assert (await ada.hear("line"))["position"] == line["position"]

    await grace.say("whisper", to="Ada", text="psst")
    assert (await ada.hear("whisper"))["text"] == (await grace.hear("whisper"))["text"] == "psst"

    await grace.say("enter", room="garden")
    await ada.hear("person", name="Grace", here=False)
    await grace.say("say", text="nobody hears")
    await grace.hear("line", room="garden")
    await grace.say("enter", room="lobby")
    assert [each["text"] for each in (await grace.hear("room", room="lobby"))["lines"]] == ["hello"]
    assert sorted((await grace.hear("people"))["names"]) == ["Ada", "Grace"]

    # The process that Ada is on is killed. Who has her key may have her name at once, although nobody knows it yet.
    os.kill(processes(program)[home["worker"]], signal.SIGKILL)
    assert await closed(ada.client) == 1006
    await grace.say("say", text="while you were away")
    await grace.hear("line")
    ada = await visit(stack, program, "Ada", key=home["key"])
    assert (await ada.hear("welcome"))["key"] == home["key"]
    await ada.say("enter", room="lobby", since=line["position"])
    missed = await ada.hear("room")
    assert (missed["recovered"], [each["text"] for each in missed["lines"]]) == (True, ["while you were away"])
    await grace.client.close()
    await ada.hear("person", name="Grace", here=False)

    # So is the one that keeps them all: nothing is left behind.
    program.process.kill()
    await program.rest()  # every process has ended by then, Redis too
    assert await program.process.wait() == -signal.SIGKILL
    assert await closed(ada.client) == 1001


async def test_without_redis_one_process_does_it_all(stack: Stack, tmp_path: Path) -> None:
    program = await started(stack, tmp_path, PATH="")
    assert "there is no redis-server in PATH" in program.said
    assert len(processes(program)) == 1
    ada = await come(stack, program, "Ada")
    await ada.say("say", text="hello")
    await ada.hear("line")
    grace = await visit(stack, program, "Grace")
    await grace.say("enter", room="lobby")
    assert [line["text"] for line in (await grace.hear("room"))["lines"]] == ["hello"]
    await ada.hear("person", name="Grace", here=True)

    # What no page says.
    for name, key in (("Ada", ""), ("Ada", "0" * 64), ("", ""), ("A da", ""), ("x" * 31, ""), ("Eve", "\u00e9")):
        eve = await visit(stack, program, name, key=key)
        assert await closed(eve.client) == (4001 if name == "Ada" else 4000), name
    for said in (
        {"type": "say", "text": "x" * 1001},
        {"type": "say", "text": ""},
        {"type": "enter", "room": "lobby.*"},
        {"type": "enter", "room": "lobby", "since": ["e", "1"]},
        {"type": "enter", "room": "lobby", "since": ["e", -1]},
        {"type": "enter", "room": "lobby", "since": ["e" * 65, 1]},
        {"type": "shout", "text": "x"},
        {"type": "hello", "name": "Eve"},
        [],
    ):
        eve = await come(stack, program, "Eve")
        await eve.client.send_json(said)
        assert await closed(eve.client) == 4000, said
        await ada.hear("person", name="Eve", here=False)
    eve = await come(stack, program, "Eve")
    await eve.say("enter", room="lobby", since=["another epoch", 1])
    assert not (await eve.hear("room"))["recovered"]
    await eve.say("whisper", to="Nobody", text="psst")
    assert (await eve.hear("refused"))["why"] == "nobody has the name 'Nobody'"
    await eve.client.send("x" * 9000)
    assert await closed(eve.client) == 1009
    for path, status in (("/", 200), ("/chat.js", 200), ("/chat.css", 200), ("/../serve.py", 404)):
        with pytest.raises(HandshakeFailed) as answer:
            await WebSocketClient.connect(f"ws://127.0.0.1:{program.port}{path}", connection_timeout=60)
        assert answer.value.status == status

    # The page comes back while its old connection is still there.
    old = await visit(stack, program, "Hedy")
    key = (await old.hear("welcome"))["key"]
    again = await visit(stack, program, "Hedy", key=key)
    await again.hear("welcome")
    with pytest.raises(ConnectionClosed, match="another connection has this name"):
        await old.hear("line")
    for visitor in (ada, grace, again):
        await visitor.client.close()
    await program.end()
