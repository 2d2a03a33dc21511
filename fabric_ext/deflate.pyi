from typing import Self, final

from typing_extensions import Buffer, disjoint_base

class OutputLimit(ValueError):
    """A message decompresses to more than it may. On the wire: close code 1009."""

    size: int
    """Bytes of the message that were seen, one more than allowed; how long it really is, is not known."""
    limit: int
    """Bytes of the message that were allowed, over all its frames."""
    def __init__(self, size: int, limit: int) -> None: ...

class CorruptData(ValueError):
    """What a peer sent is not what the agreed extension produces. On the wire: close code 1007."""

@disjoint_base
class Codec:
    """Both directions of one connection's compression, as the two ends agreed.

    After `decode` has raised, it always raises: the sender's window and ours are no longer the same.
    """

    threshold: int
    """Messages of fewer bytes are better sent plain. The codec itself compresses whatever it is given."""
    own_takeover: bool
    """Whether a message that we send may refer to those before it."""
    peer_takeover: bool
    """Whether a message that we receive may."""
    own_window_bits: int
    peer_window_bits: int
    plain_out: int
    """Bytes of the messages given to `encode`."""
    wire_out: int
    """Bytes that they became."""
    wire_in: int
    """Bytes given to `decode`."""
    plain_in: int
    """Bytes that they became."""

    def encode(self, data: Buffer) -> bytes:
        """Compress one message into the payload of a frame with RSV1 set (or of several, cut anywhere).

        The result must be sent, and in the order of the calls: the next message may refer to it.
        """

    def decode(self, data: Buffer, *, first: bool = True, fin: bool = True, limit: int) -> bytes:
        """Decompress one frame's payload.

        Args:
            data: the payload.
            first: it is the first of its message.
            fin: it is the last.
            limit: most bytes that may come out of it. A payload that holds more is given up as soon as that
                shows, so no more memory than this is taken.

        Raises:
            OutputLimit: it holds more.
            CorruptData: it cannot be decompressed, or an earlier one could not.
        """

    @property
    def sharing(self) -> object:
        """Equal for two codecs if the same `encode_alone` result serves both."""

    def encode_alone(self, data: Buffer) -> bytes:
        """Compress a message that goes to many, with no reference to any message before it."""

    def adopted(self, alone: bytes, data: Buffer) -> bytes:
        """What to send to this peer instead of `encode(data)`. It must be sent, and in order, as `encode`'s.

        Args:
            alone: `encode_alone(data)`, from a codec of the same `sharing`. It is returned where possible.
            data: the message.
        """

    def release_idle(self) -> None:
        """Give back all memory that the agreed terms do not force to keep: our window, and all of the peer's
        decompressor but the bytes that its next message may refer to.

        For connections at rest. The next message in each direction costs a few microseconds more, and ours,
        which then refers to nothing before it, some bytes.
        """

@final
class DeflateCodec(Codec):
    """permessage-deflate (RFC 7692).

    Args:
        own_window_bits: our window is 2 ** bits bytes, 8 to 15.
        peer_window_bits: the peer's.
        own_takeover: False: each of our messages refers to nothing before it (RFC 7692 §7.1.1). Such messages
            share one encoder per process, and cost no memory between them.
        peer_takeover: False: likewise the peer's.
        level: effort, 1 to 9 (0 is 1); None is 3. Up to 3 no Huffman codes are built for what compresses well
            without; from 4 on they are, for a fifth fewer bytes of long messages.
        mem_level: 1 to 9. The encoder takes 2 ** (own_window_bits + 1) + 2 ** (mem_level + 7) bytes, and from
            level 2 on another 2 ** own_window_bits, while it has anything to remember: 16 KB with 12 bits.
        threshold: see `Codec.threshold`.

    Raises:
        ValueError: a number is out of its range.
    """

    def __new__(
        cls,
        *,
        own_window_bits: int = 15,
        peer_window_bits: int = 15,
        own_takeover: bool = True,
        peer_takeover: bool = True,
        level: int | None = None,
        mem_level: int = 5,
        threshold: int = 0,
    ) -> Self: ...
    @property
    def own_memory(self) -> int:
        """Bytes that the encoder holds now."""

@final
class ZstdCodec(Codec):
    """permessage-zstd: blocks of a zstd stream (RFC 8878) that end where messages end.

    Args:
        own_window_bits: our window is 2 ** bits bytes, 10 to 27.
        peer_window_bits: the peer's; a frame that asks for more is refused.
        own_takeover: False: each message is a frame of its own, made by one compressor per process.
        peer_takeover: False: likewise the peer's.
        level: effort, 1 to 22; None is 3.
        dictionary: trained, or any content; the same on both sides.
        threshold: see `Codec.threshold`.

    A compressor in use takes some 800 KB at level 3, a decompressor 30 to 50. While it decompresses, `decode` may
    take 8 times the peer's window (and never more than 1 MB) above its limit.

    Raises:
        ValueError: a number is out of its range.
    """

    dictionary: bytes | None

    def __new__(
        cls,
        *,
        own_window_bits: int = 15,
        peer_window_bits: int = 15,
        own_takeover: bool = True,
        peer_takeover: bool = True,
        level: int | None = None,
        dictionary: bytes | None = None,
        threshold: int = 0,
    ) -> Self: ...
