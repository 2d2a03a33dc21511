from typing_extensions import Buffer

def mask(data: Buffer, key: Buffer, offset: int = 0) -> bytes:
    """Return `data` masked, or unmasked, which is the same, with the 4 bytes of `key` (RFC 6455 §5.3).

    Args:
        data: any contiguous bytes-like object.
        key: 4 bytes.
        offset: how many bytes of the same payload came before.

    Raises:
        ValueError: the key is not 4 bytes, or the offset is negative.
        TypeError, BufferError: `data` or `key` is not a contiguous bytes-like object.
    """

def mask_inplace(buffer: Buffer, key: Buffer, offset: int = 0) -> None:
    """Like `mask`, but change `buffer`, which must be writable (BufferError otherwise)."""

def random_key() -> bytes:
    """Four bytes nobody can predict (RFC 6455 §10.3), from a pool that os.urandom fills.

    A process that was forked never uses what is left of its parent's pool. Raises what os.urandom raises.
    """

def select_kernel(name: str | None = None) -> str:
    """Mask payloads of 64 bytes and more with the kernel called `name` ("baseline", "avx2"); return its name.

    None is the fastest that this processor runs, which is in use from the start. For tests and benchmarks.
    Raises ValueError for a kernel that this processor or build does not have.
    """
