"""What the servers of a fleet tell each other: msgspec structs as MessagePack, checked strictly when they are read.

Owns the shapes and their bounds. Knows nothing of brokers and connections.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from fabric_ext.topics import check_topic

__all__ = [
    "Ask",
    "Beat",
    "Bye",
    "Changes",
    "Disconnect",
    "Entered",
    "Exited",
    "Left",
    "Malformed",
    "Named",
    "Reply",
    "Request",
    "Send",
    "Spoken",
    "State",
    "Status",
    "Unsubscribe",
    "check_name",
    "decode",
    "encode",
]

LONGEST = 255  # bytes of a name
MOST = 10_000  # items of one list

Count: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 62)]
Identity: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
Identities: TypeAlias = Annotated[list[Identity], Meta(max_length=MOST)]
Text: TypeAlias = Annotated[str, Meta(max_length=LONGEST)]
Texts: TypeAlias = Annotated[list[Text], Meta(max_length=MOST)]
Kind: TypeAlias = Annotated[int, Meta(ge=1, le=2)]  # of a message, as the opcodes of RFC 6455
Code: TypeAlias = Annotated[int, Meta(ge=1000, le=4999)]
Moment: TypeAlias = Annotated[float, Meta(ge=0, le=1e11)]  # as time.time()
Duration: TypeAlias = Annotated[float, Meta(gt=0, le=1e9)]  # seconds


class Malformed(ValueError):
    """This is nothing that a server of ours says."""


class _Said(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    pass


# Changes of the members of a server. A member is a client with a name.


class Named(_Said, tag=1):
    """A client has a name, and is in these topics with presence."""

    id: Identity
    name: Text
    since: Moment
    topics: Texts


class Left(_Said, tag=2):
    """A client has ended, or has no name any more."""

    id: Identity


class Entered(_Said, tag=3):
    """A member has subscribed to a topic with presence."""

    id: Identity
    topic: Text


class Exited(_Said, tag=4):
    """A member has unsubscribed from it."""

    id: Identity
    topic: Text


# To all servers.


class Beat(_Said, tag=10):
    """The server is there. `version` counts its `Changes`; `hello` asks all others for their state."""

    version: Count
    hello: bool


class Changes(_Said, tag=11):
    """What has changed since the version before."""

    version: Count
    changes: Annotated[list[Named | Left | Entered | Exited], Meta(max_length=MOST)]


class Bye(_Said, tag=12):
    """The server ends."""


# To one server.


class Ask(_Said, tag=20):
    """Tell me your state."""


class State(_Said, tag=21):
    """All members, in one part or several that follow one another; `part` counts them from 0."""

    version: Count
    part: Count
    is_last: bool
    members: Annotated[list[Named], Meta(max_length=MOST)]


class Send(_Said, tag=30):
    """Send a message to members."""

    number: Count
    ids: Identities
    kind: Kind
    payload: bytes


class Request(_Said, tag=31):
    """Have a member answer a message."""

    number: Count
    id: Identity
    kind: Kind
    payload: bytes
    seconds: Duration


class Disconnect(_Said, tag=32):
    """Close the connections of members."""

    number: Count
    ids: Identities
    code: Code
    reason: Text


class Unsubscribe(_Said, tag=33):
    """End subscriptions of members."""

    number: Count
    ids: Identities
    topic: Text


class Status:
    """How a call has ended."""

    DONE, NOBODY, FAILED = range(3)


class Reply(_Said, tag=40):
    """What a call has come to: for how many members it was done, the answer, or why it failed as text."""

    number: Count
    status: Annotated[int, Meta(ge=Status.DONE, le=Status.FAILED)]
    count: Count
    kind: Kind
    payload: bytes


Spoken: TypeAlias = Beat | Changes | Bye | Ask | State | Send | Request | Disconnect | Unsubscribe | Reply

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Spoken).decode


def decode(data: bytes) -> Spoken:
    """Read what another server has said.

    Raises:
        Malformed: it is nothing of that kind, or has a name or topic that cannot be one.
    """
    try:
        said: Spoken = _decode(data)
        for change in said.changes if isinstance(said, Changes) else said.members if isinstance(said, State) else ():
            if isinstance(change, Named):
                check_name(change.name)
                for topic in change.topics:
                    check_topic(topic)
            elif isinstance(change, Entered):
                check_topic(change.topic)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Malformed(str(error)) from error
    return said


def check_name(name: object) -> None:
    """Can this be the name of a client?

    Raises:
        TypeError: it is no str.
        ValueError: it is empty, longer than 255 bytes, or has white space or characters that cannot be printed.
    """
    if not isinstance(name, str):
        raise TypeError(f"a name is a str, not {type(name).__name__}")
    if not name:
        raise ValueError("a name is not empty")
    if not name.isprintable() or " " in name:
        raise ValueError(f"a name has no white space and only characters that can be printed: {name!r}")
    size = len(name.encode())
    if size > LONGEST:
        raise ValueError(f"a name has {LONGEST} bytes at most, not {size}")
