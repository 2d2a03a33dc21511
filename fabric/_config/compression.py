"""What can be configured about compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fabric._config.validation import Builder, Config, explains_unknown_options

__all__ = ["NO_COMPRESSION", "CompressionConfig"]


@explains_unknown_options
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CompressionConfig(Config):
    """Compression of messages: permessage-deflate (RFC 7692), or zstd between two of `fabric`.

    Attributes:
        enabled: False neither offers nor accepts it.
        algorithm: "deflate"; or "zstd", negotiated as an extension that only `fabric` knows.
        level: effort, 1 to 9 for deflate and 1 to 22 for zstd; None = 3 for both.
        threshold: bytes below which a message goes out plain.
        server_max_window_bits: the server's window is 2 ** bits bytes, 8 to 15. Each step less halves its
            memory, per connection, and finds fewer repetitions.
        client_max_window_bits: likewise, the client's.
        server_no_context_takeover: the server forgets each message when it is sent. Costs most of what is
            saved on small messages; saves the memory of the window between messages.
        client_no_context_takeover: likewise, the client.
        mem_level: memory for deflate's own tables, 1 to 9: 2 ** (mem_level + 7) bytes.
        zstd_dictionary: a dictionary of 8 bytes or more, trained or any content, the same on both sides.
    """

    enabled: bool = True
    algorithm: Literal["deflate", "zstd"] = "deflate"
    level: int | None = None
    threshold: int = 64
    server_max_window_bits: int = 12
    client_max_window_bits: int = 12
    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    mem_level: int = 5
    zstd_dictionary: bytes | None = None

    def __post_init__(self) -> None:
        self._check_flag("enabled", "server_no_context_takeover", "client_no_context_takeover")
        self._check_choice("algorithm", ("deflate", "zstd"))
        low, high = (1, 9) if self.algorithm == "deflate" else (1, 22)
        self._check_integer("level", low, high, optional=True, note=f"for {self.algorithm}")
        self._check_integer("threshold", 0)
        self._check_integer("server_max_window_bits", 8, 15)
        self._check_integer("client_max_window_bits", 8, 15)
        self._check_integer("mem_level", 1, 9)
        self._check_instance("zstd_dictionary", bytes, optional=True)
        if self.zstd_dictionary is not None and len(self.zstd_dictionary) < 8:
            self._reject("zstd_dictionary", "at least 8 bytes")
        if self.algorithm == "zstd" and self.zstd_dictionary is not None and not _can_load(self.zstd_dictionary):
            self._reject("zstd_dictionary", "what zstd has trained, or content that does not begin like it")

    with_enabled = Builder[bool]()
    with_algorithm = Builder[Literal["deflate", "zstd"]]()
    with_level = Builder[int | None]()
    with_threshold = Builder[int]()
    with_server_max_window_bits = Builder[int]()
    with_client_max_window_bits = Builder[int]()
    with_server_no_context_takeover = Builder[bool]()
    with_client_no_context_takeover = Builder[bool]()
    with_mem_level = Builder[int]()
    with_zstd_dictionary = Builder[bytes | None]()


def _can_load(dictionary: bytes) -> bool:
    """Whether zstd takes a dictionary; only a trained one, which starts with a number, can be wrong (RFC 8878 §5)."""
    if not dictionary.startswith(b"\x37\xa4\x30\xec"):
        return True
    import zstandard  # where it is used: few do

    try:
        content = zstandard.ZstdCompressionDict(dictionary)
        zstandard.ZstdDecompressor(dict_data=content)
        zstandard.ZstdCompressor(dict_data=content).compress(b"")
    except zstandard.ZstdError:
        return False
    return True


NO_COMPRESSION = CompressionConfig(enabled=False)
