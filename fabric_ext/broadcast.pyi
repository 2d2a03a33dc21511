from typing import TypeVar, final

from fabric_ext.connection import Connection
from fabric_ext.message import Message
from fabric_ext.writer import Item

_C = TypeVar("_C", bound=Connection)

@final
class Shared(Item):
    """A message for many connections of a server: its frame is built once, and compressed once per agreed setting.

    Args:
        message: text or binary.
        compress: as in `Connection.send`.
        fragment_size: payload bytes per frame; 0 never splits.
    """

    def __init__(self, message: Message, compress: bool | None, fragment_size: int) -> None: ...
    def send_to(self, peers: list[_C]) -> tuple[int, list[_C]]:
        """Send it to those of `peers` that take it now; return their number, and the open ones that do not.

        It is written at the end of the turn of the loop, together with what else is sent to many in it.

        Raises:
            TypeError: an item is no Connection.
        """
