"""What a forked child does with the sockets of its parent: it lets go of them.

A copy that a child keeps open would hide the end of the connection from the peer: nothing is sent to it when the parent
closes. In the child each descriptor becomes one of /dev/null, so that its number is not given to another file while
Python objects still hold it. The child must make connections of its own, in an event loop of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Protocol
from weakref import WeakSet

__all__ = ["stays_with_parent"]


class Owner(Protocol):
    """Has sockets."""

    def _descriptors(self) -> Iterable[int]:
        """The file descriptors of those that are open."""


_owners: WeakSet[Owner] = WeakSet()


def stays_with_parent(owner: Owner) -> None:
    """Have the sockets that `owner` has at a fork let go of in the child."""
    _owners.add(owner)


def _let_go() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        for owner in list(_owners):
            with contextlib.suppress(Exception):  # whatever one owner's state is, the others are seen to
                for descriptor in owner._descriptors():
                    if descriptor >= 0:
                        os.dup2(nothing, descriptor, inheritable=False)
    finally:
        os.close(nothing)
        _owners.clear()


os.register_at_fork(after_in_child=_let_go)
