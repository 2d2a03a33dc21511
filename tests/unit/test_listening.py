"""Sockets that a server is started with, and the paths of UNIX-domain sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric._server.listening import Listener, bound_path, inherited_sockets


class Passed:
    """What systemd does: sockets from descriptor 3 on. Here from wherever they are: the descriptors are moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
        # Next to each other, as those are that systemd passes.
        first = 500
        for index, sock in enumerate(self.sockets):
            os.dup2(sock.fileno(), first + index)
        monkeypatch.setattr("fabric._server.listening.FIRST_PASSED", first)
        self.environ = {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(names)),
            "LISTEN_FDNAMES": ":".join(names),
        }
        self.numbers = [first + index for index in range(len(names))]

    @property
    def addresses(self) -> list[object]:
        return [sock.getsockname() for sock in self.sockets]

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        for number in self.numbers:
            with contextlib.suppress(OSError):  # closed by the test
                os.close(number)


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Passed]:
    made = Passed(monkeypatch, "web", "admin", "web")
    yield made
    made.close()


def taken(bind: str, environ: dict[str, str]) -> list[object]:
    """The addresses of the sockets that `bind` names; they are closed then."""
    sockets = inherited_sockets(bind, environ)
    assert sockets is not None
    addresses = []
    for sock in sockets:
        addresses.append(sock.getsockname())
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        sock.close()
    return addresses


def test_all_that_systemd_has_passed(passed: Passed) -> None:
    assert taken("systemd:", passed.environ) == passed.addresses


def test_those_of_one_name(passed: Passed) -> None:
    first, second, third = passed.addresses
    assert taken("systemd:admin", passed.environ) == [second]
    assert taken("systemd:web", passed.environ) == [first, third]


def test_one_by_its_descriptor(passed: Passed) -> None:
    assert taken(f"fd:{passed.numbers[1]}", {}) == [passed.addresses[1]]


@pytest.mark.parametrize(
    "change",
    [
        {"LISTEN_PID": "1"},
        {"LISTEN_PID": ""},
        {"LISTEN_FDS": ""},
        {"LISTEN_FDS": "two"},
        {"LISTEN_FDS": "-1"},
        {"LISTEN_FDS": "0"},
    ],
    ids=str,
)
def test_what_is_not_for_this_process(passed: Passed, change: dict[str, str]) -> None:
    with pytest.raises(OSError, match="systemd has passed no socket"):
        inherited_sockets("systemd:", passed.environ | change)


def test_a_name_that_is_not_there(passed: Passed) -> None:
    for environ in (passed.environ, passed.environ | {"LISTEN_FDNAMES": ""}):
        with pytest.raises(OSError, match="no socket of this name"):
            inherited_sockets("systemd:other", environ)


def test_what_is_no_stream_socket(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(OSError, match="is no socket"):
        inherited_sockets(f"fd:{file.fileno()}", {})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(OSError, match="is no stream socket"):
            inherited_sockets(f"fd:{sock.fileno()}", {})
        assert sock.getsockname()  # it is still open


def test_addresses_and_paths_are_nothing_that_was_given() -> None:
    for bind in ("127.0.0.1:8080", ":0", "unix:/tmp/x", "systemd.example:80", "fd.example:80"):
        assert inherited_sockets(bind, {}) is None


# paths


def test_a_path_gets_its_permissions(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    for mode in (0o600, 0o666):
        sock, inode = bound_path(path, mode)
        with sock:
            sock.listen()
            status = os.stat(path)
            assert (stat.S_IMODE(status.st_mode), status.st_ino) == (mode, inode)
        os.unlink(path)


def test_a_path_that_nobody_listens_on_is_taken_over(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    bound_path(path, None)[0].close()
    assert os.path.exists(path)
    sock, _ = bound_path(path, None)
    sock.close()


def test_a_path_that_is_listened_on_is_in_use(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    sock, inode = bound_path(path, None)
    with sock:
        sock.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for each in waiting:  # also when its backlog is full
            with pytest.raises(OSError, match="in use"):
                bound_path(path, None)
            each.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                each.connect(path)
        assert os.stat(path).st_ino == inode
        for each in waiting:
            each.close()


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        bound_path(str(path), None)
    assert path.read_text() == "precious"


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="abstract sockets are Linux'")
def test_an_abstract_one_has_no_file() -> None:
    sock, inode = bound_path(f"\0fabric-test-{os.getpid()}", 0o600)
    sock.close()
    assert inode is None


async def test_a_duplicate_that_cannot_be_listened_on_is_closed() -> None:
    class Refusing:
        async def on_socket(self, sock: socket.socket) -> Any:
            refused.append(sock)
            raise OSError

    class Accepting:
        def __init__(self, *sockets: socket.socket) -> None:
            self.sockets = sockets

    refused: list[socket.socket] = []
    refusing: Any = Refusing()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        accepting: Any = Accepting(sock)
        with pytest.raises(OSError):
            await Listener([accepting]).multiply(refusing)
        assert [each.fileno() for each in refused] == [-1]
        assert sock.fileno() != -1
