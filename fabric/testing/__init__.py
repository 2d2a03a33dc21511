"""Tests of programs that use `fabric`: connections in memory, a server that follows a script, a clock, fixtures.

- `pair`: a connected client and the server's end, without a socket;
- `ScriptedServer`: a server that expects, sends, delays, drops and refuses as a test says;
- `FakeTimeLoop`, and `fake_time` for a single test: an event loop in which an hour takes no time;
- the fixtures `ws_server` and `ws_client` of `fabric.testing.plugin`, a pytest plugin.

None of it is needed by a program that runs, and none is imported by `fabric`.
"""

from fabric.testing.clock import FakeTimeLoop, fake_time
from fabric.testing.pairs import pair
from fabric.testing.script import Script, ScriptedServer

__all__ = ["FakeTimeLoop", "Script", "ScriptedServer", "fake_time", "pair"]
