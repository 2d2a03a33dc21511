"""Two network namespaces and a wire between them that loses, delays, reorders, or is cut.

Needs root on Linux. `Veth` is the system's own wire, mistreated by `tc netem`; where the kernel has no netem it can
only be cut. `Tun` is a wire of our own between two TUN devices, which does the same in a thread, repeatably from a
seed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Self

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
HOSTS = "192.0.2.1", "192.0.2.2"  # RFC 5737: addresses for examples


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def can_make_namespaces() -> bool:
    """Are we root, and do `ip netns` and veth work here?"""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    name = f"fabric-{os.getpid()}-try"
    try:
        run("ip", "netns", "add", name)
    except OSError:
        return False
    try:
        run("ip", "-n", name, "link", "add", "fab-a", "type", "veth", "peer", "name", "fab-b")
    except OSError:
        return False
    finally:
        run("ip", "netns", "del", name)
    return True


@contextlib.contextmanager
def entered(namespace: str) -> Iterator[None]:
    """Sockets and processes made by this thread belong to `namespace`."""
    setns = ctypes.CDLL(None, use_errno=True).setns

    def enter(descriptor: int) -> None:
        if setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        try:
            enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            enter(before)
    finally:
        os.close(before)


class Wire:
    """`with Veth() as wire`: `wire.namespaces[i]` has the address HOSTS[i], reached from the other one."""

    def __init__(self) -> None:
        self.namespaces = tuple(f"fabric-{os.getpid()}-{side}" for side in "ab")
        self.devices = "fab-a", "fab-b"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            for name in self.namespaces:
                run("ip", "netns", "add", name)
                undo.callback(run, "ip", "netns", "del", name)
            self.join(undo)
            for name, device, host in zip(self.namespaces, self.devices, HOSTS, strict=True):
                run("ip", "-n", name, "addr", "add", f"{host}/24", "dev", device)
                run("ip", "-n", name, "link", "set", device, "up")
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def join(self, undo: contextlib.ExitStack) -> None:
        """Make the devices."""
        raise NotImplementedError

    def mistreat(self, rng: random.Random, *, loss: float = 0, delay: float = 0, reorder: float = 0) -> None:
        """Both ways: lose a part of the packets, delay all by so many seconds, send a part ahead of the others."""
        raise NotImplementedError

    def cut(self) -> None:
        """No packet passes any more, and nobody is told."""
        raise NotImplementedError

    def mend(self) -> None:
        """Undo `cut`."""
        raise NotImplementedError


class Veth(Wire):
    """The system's wire."""

    def join(self, undo: contextlib.ExitStack) -> None:
        (a, b), (in_a, in_b) = self.devices, self.namespaces
        run("ip", "link", "add", a, "netns", in_a, "type", "veth", "peer", "name", b, "netns", in_b)

    def mistreat(self, rng: random.Random, *, loss: float = 0, delay: float = 0, reorder: float = 0) -> None:
        """Raises OSError where the kernel has no netem, which draws from no generator of ours."""
        options = ["delay", f"{delay * 1000:g}ms", "loss", f"{loss * 100:g}%"]
        if reorder:
            options += ["reorder", f"{reorder * 100:g}%"]
        for name, device in zip(self.namespaces, self.devices, strict=True):
            run("tc", "-n", name, "qdisc", "replace", "dev", device, "root", "netem", *options)

    def cut(self) -> None:
        run("ip", "-n", self.namespaces[1], "link", "set", self.devices[1], "down")

    def mend(self) -> None:
        run("ip", "-n", self.namespaces[1], "link", "set", self.devices[1], "up")


class Tun(Wire):
    """A wire of our own.

    Attributes:
        passed, lost, overtaken: packets so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rng = random.Random(0)  # draws nothing that counts before `mistreat`
        self._loss = self._delay = self._reorder = 0.0
        self._is_cut = False
        self.passed = self.lost = self.overtaken = 0

    def join(self, undo: contextlib.ExitStack) -> None:
        ends = []
        for name, device in zip(self.namespaces, self.devices, strict=True):
            with entered(name):
                end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
                undo.callback(os.close, end)
                fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN_NO_PI))
            ends.append(end)
        stop, self._stop = os.pipe()
        undo.callback(os.close, stop)
        thread = threading.Thread(target=self._forward, args=(ends, stop), name="wire")
        undo.callback(thread.join)
        undo.callback(os.close, self._stop)  # first of all: ends the thread
        thread.start()

    def mistreat(self, rng: random.Random, *, loss: float = 0, delay: float = 0, reorder: float = 0) -> None:
        self._rng = rng
        self._loss, self._delay, self._reorder = loss, delay, reorder

    def cut(self) -> None:
        self._is_cut = True

    def mend(self) -> None:
        self._is_cut = False

    def _forward(self, ends: list[int], stop: int) -> None:
        other = dict(zip(ends, reversed(ends), strict=True))
        waiting: list[tuple[float, int, int, bytes]] = []  # moment, running number, where to, packet
        number = 0
        while True:
            timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            ready, _, _ = select.select([*ends, stop], [], [], timeout)
            if stop in ready:
                return
            for end in ready:
                with contextlib.suppress(BlockingIOError):
                    packet = os.read(end, 65536)
                    number += 1
                    if self._is_cut or self._rng.random() < self._loss:
                        self.lost += 1
                        continue
                    delay = self._delay
                    if self._rng.random() < self._reorder:
                        self.overtaken += 1
                        delay = 0
                    heapq.heappush(waiting, (time.monotonic() + delay, number, other[end], packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(waiting)
                self.passed += 1
                with contextlib.suppress(OSError):  # the device is not up yet
                    os.write(end, packet)


WIRES: dict[str, type[Wire]] = {"veth": Veth, "tun": Tun}
