"""The sockets that the parent of workers listens on."""

from __future__ import annotations

import contextlib
import errno

import pytest

from fabric._workers.addresses import Addresses


def test_a_second_parent_is_refused() -> None:
    """Sockets that share a port, for the kernel to spread connections, do not share it with those of others."""
    with contextlib.closing(Addresses("127.0.0.1:0", 2)) as first:
        (host, port), *others = first.names
        assert not others
        with pytest.raises(OSError) as refused:
            Addresses(f"{host}:{port}", 2)
        assert refused.value.errno == errno.EADDRINUSE
    with contextlib.closing(Addresses(f"{host}:{port}", 2)) as again:
        assert again.names == [(host, port)]
