"""`recv` and `send` for threads, of what has no connection. What they do on one is in integration/test_sync.py."""

from __future__ import annotations

import pytest

from fabric.sync import SyncClient
from fabric_ext.blocking import Blocking


def test_what_was_made_without_a_connection_refuses() -> None:
    for blocking in (Blocking(), SyncClient.__new__(SyncClient)):
        with pytest.raises(TypeError, match="connect"):
            blocking.recv()
        with pytest.raises(TypeError, match="connect"):
            blocking.send("x")
        with pytest.raises(TypeError, match="connect"):
            blocking.send_nowait("x")
