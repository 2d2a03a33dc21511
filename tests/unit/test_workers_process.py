"""How the process of a worker is started."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fabric._server.handover import Handover
from fabric._workers.channel import Channel
from fabric._workers.process import START, WorkerProcess
from support.pages import ROOT


def test_a_worker_imports_this_fabric(tmp_path: Path) -> None:
    """Also where the interpreter finds another module of the same name first."""
    (tmp_path / "fabric.py").write_text("raise SystemExit(7)")
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        ended = subprocess.run(
            [sys.executable, "-c", START.format(folder=str(ROOT), descriptor=theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            check=False,
        )
    assert ended.returncode == 1  # as there is nobody to say what to do


@pytest.mark.parametrize("loop_factory", ["asyncio"], indirect=True)
async def test_a_start_that_is_cancelled_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    opened: list[socket.socket] = []
    opening = asyncio.Event()

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    async def never(sock: socket.socket) -> Channel:
        opened.append(sock)
        opening.set()
        return await asyncio.Future()

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(Channel, "open", never)
    handover = Handover()
    passed = [handover.take_other_end()]
    starting = asyncio.create_task(WorkerProcess.start(0, b"", passed, handover))
    await opening.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert [each.returncode is None for each in started] == [False]
    assert [sock.fileno() for sock in (*opened, *passed, handover)] == [-1, -1, -1]
