from collections.abc import Callable
from fractions import Fraction
from typing import Final, final

from typing_extensions import disjoint_base

NEVER: Final[int]
"""What a wait is when no waiting helps: more is asked for than the burst holds. It is -1."""

NO_MESSAGE: Final[int]
"""What a RateGate is asked for in place of a message's size: an operation that is no message. It is -1."""

@final
class TokenBucket:
    """A bucket of `burst` tokens that refills at `rate_per_second`; it starts full.

    Exact: a bucket of 3/s has admitted burst + 3t tokens after t seconds of demand, whatever t is. The rate
    may be an int, a float (taken as the decimal it prints as) or a Fraction; denominators up to 10**9 are
    exact, others are rounded to the nearest such fraction. Rates from 1e-9 to 1e18 a second, bursts up to
    2**63-1.

    `now` is a monotonic clock's nanoseconds (time.monotonic_ns). Of negative `n`, none is ever admitted.

    Raises:
        TypeError: rate_per_second is not a number, or burst not an int.
        ValueError: either is out of its range.
    """

    def __new__(cls, rate_per_second: float | Fraction, burst: int) -> TokenBucket: ...
    @property
    def rate(self) -> Fraction:
        """Tokens per second, as used."""

    @property
    def burst(self) -> int:
        """Tokens the bucket holds at most."""

    def take(self, n: int, now: int) -> bool:
        """Take `n` tokens if all are there, else none. More than `burst` are never there."""

    def wait_ns(self, n: int, now: int) -> int:
        """Nanoseconds until `take(n)` succeeds if no other call takes: exact; 0 = now, NEVER if n > burst."""

    def queue_ns(self, ahead: int, n: int, now: int) -> int:
        """Nanoseconds until `n` tokens are there for a caller behind others that wait for `ahead` in all."""

    def reserve(self, n: int, now: int) -> int:
        """Take `n` tokens even from the future; return how many nanoseconds to wait before acting on it.

        Reservations are served in the order in which they were made. NEVER (and nothing taken) if n > burst,
        or if the wait would be above 146 years.
        """

    def give_back(self, n: int) -> None:
        """Return `n` tokens that were taken or reserved and not used; above `burst` they are lost."""

    def available(self, now: int) -> int:
        """Whole tokens that could be taken at `now`; 0 in debt."""

    def reset(self) -> None:
        """Fill the bucket."""

@final
class RateGate:
    """The limits of one connection: up to three buckets, asked together.

    A message takes one token of `messages`, its size of `bytes` and one of `operations`; if one of them refuses, none
    is taken from. Anything else that a peer asks for, such as a ping, takes one of `operations` only: in place of the
    size it is NO_MESSAGE. `shared` is another gate that must agree as well, such as a server's global limit. Whatever
    is None does not limit.
    """

    def __new__(
        cls,
        messages: TokenBucket | None = None,
        bytes_: TokenBucket | None = None,
        operations: TokenBucket | None = None,
        shared: RateGate | None = None,
    ) -> RateGate: ...
    @property
    def messages(self) -> TokenBucket | None: ...
    @property
    def bytes(self) -> TokenBucket | None: ...
    @property
    def operations(self) -> TokenBucket | None: ...
    @property
    def shared(self) -> RateGate | None: ...
    def own_wait_ns(self, size: int, now: int) -> int:
        """As wait_ns, without the shared gate."""

    def wait_ns(self, size: int, now: int) -> int:
        """Nanoseconds until a message of `size` bytes would pass; 0 = now, NEVER if it exceeds a burst."""

    def admit(self, size: int, now: int) -> int:
        """Let one message of `size` bytes pass: 0, its tokens are taken; else wait_ns(), and none are."""

    def reserve(self, size: int, now: int) -> int:
        """Take one message's tokens even from the future; return nanoseconds to wait before acting on it.

        NEVER, and nothing taken, as TokenBucket.reserve.
        """

    def reserve_bytes(self, size: int, now: int) -> int:
        """Take `size` bytes of a message that has passed, into debt if need be; return nanoseconds to wait for them."""

@final
class RateLimitStatus:
    """What a rate limit answers; true where it allows.

    Attributes:
        allowed: go ahead: `try_acquire` has taken the tokens, `check` would find them.
        remaining: whole tokens that are left; None = not limited.
        retry_after: seconds until it will be allowed, callers that wait in front included; 0 = now, infinite
            if more is asked for than the burst, which no waiting brings.
    """

    def __init__(self, allowed: bool, remaining: int | None, retry_after: float) -> None: ...
    @property
    def allowed(self) -> bool: ...
    @property
    def remaining(self) -> int | None: ...
    @property
    def retry_after(self) -> float: ...
    def __bool__(self) -> bool: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@disjoint_base
class Limiter:
    """The part of `fabric.ratelimit.RateLimiter` that does not wait: three buckets and a clock.

    Args:
        messages, bytes_, operations: buckets; None = not limited.
        clock: returns nanoseconds; None = time.monotonic_ns.
    """

    def __init__(
        self,
        messages: TokenBucket | None = None,
        bytes_: TokenBucket | None = None,
        operations: TokenBucket | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None: ...
    @property
    def messages(self) -> TokenBucket | None: ...
    @property
    def bytes(self) -> TokenBucket | None: ...
    @property
    def operations(self) -> TokenBucket | None: ...
    def try_acquire(self, type: int, n: int = 1) -> RateLimitStatus:  # noqa: A002
        """Take `n` tokens of `type` if they are there and no caller waits for others; never waits itself.

        Raises:
            ValueError: there is no such type, or `n` is below 1.
        """

    def check(self, type: int, n: int = 1) -> RateLimitStatus:  # noqa: A002
        """What `try_acquire` would answer, except that `remaining` is before it; takes nothing."""

    def _bucket(self, type: int) -> TokenBucket | None: ...  # noqa: A002
    def _now(self) -> int: ...
    def _wait_in_line(self, type: int, n: int) -> None: ...  # noqa: A002
