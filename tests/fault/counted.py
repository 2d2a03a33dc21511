"""Messages that can be counted: each carries its number, and what arrived is compared with what was accepted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fabric.message import Message


def numbered(number: int, size: int = 0) -> str:
    """A text message with its number in front, filled up to `size` characters."""
    return f"{number}:".ljust(size, ".")


def number_of(message: Message | str) -> int:
    text = message if isinstance(message, str) else message.as_text()
    return int(text.partition(":")[0])


def account(
    accepted: Sequence[int],
    arrived: Iterable[Sequence[int]],
    undelivered: Iterable[Message] = (),
) -> list[int]:
    """Check that nothing is lost in silence; return what was on its way when a connection was lost.

    Args:
        accepted: numbers whose `send` returned, in order.
        arrived: the numbers that each connection brought, in the order of both.
        undelivered: what the client handed back.

    Each connection brings a part of what was accepted without a gap, in order; nothing comes twice; what is handed
    back follows everything that was written. Only between two connections may something be missing.
    """
    connections = [list(each) for each in arrived]
    place = {number: index for index, number in enumerate(accepted)}
    assert len(place) == len(accepted)
    following, gone = 0, []
    for numbers in connections:
        if not numbers:
            continue
        start = place[numbers[0]]
        assert start >= following, f"{numbers[0]} came twice or too late"
        assert numbers == list(accepted[start : start + len(numbers)]), "not in order, or a gap in a connection"
        gone += accepted[following:start]
        following = start + len(numbers)
    back = [number_of(message) for message in undelivered]
    end = len(accepted) - len(back)
    assert back == list(accepted[end:]), "handed back is not the end of what was accepted"
    assert following <= end, "handed back, and delivered as well"
    return gone + list(accepted[following:end])
