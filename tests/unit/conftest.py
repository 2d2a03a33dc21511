"""Fixtures of the unit tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from support.kernel import Kernel


@pytest.fixture
def datagrams() -> Iterator[Kernel]:
    kernel = Kernel(socket.SOCK_DGRAM, 400_000)
    yield kernel
    kernel.near.close()
    kernel.far.close()


@pytest.fixture
def stream() -> Iterator[Kernel]:
    kernel = Kernel(socket.SOCK_STREAM, 4096)
    yield kernel
    kernel.near.close()
    kernel.far.close()
