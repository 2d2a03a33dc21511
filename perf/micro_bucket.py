"""What one acquire costs, beside the well-known limiters of PyPI; pyperf's options apply.

Every bucket is so large that nothing ever waits: the cost of asking is measured, not the limit. The others if
they are installed: `pip install aiolimiter limits pyrate-limiter`.
"""

from __future__ import annotations

import time
from importlib.util import find_spec

import pyperf

from fabric.config import RateLimitConfig
from fabric.ratelimit import RateLimiter, RateLimitType
from fabric_ext.bucket import RateGate, TokenBucket

PLENTY = 10**9
LOOPS = 1000


def repeat(call: object, *args: object) -> None:
    for _ in range(LOOPS):
        call(*args)  # type: ignore[operator]


def repeat_bucket(bucket: TokenBucket) -> None:
    """As an application would: with the clock read for each acquire."""
    take, clock = bucket.take, time.monotonic_ns
    for _ in range(LOOPS):
        take(1, clock())


async def acquire_ours(limiter: RateLimiter) -> None:
    for _ in range(LOOPS):
        await limiter.acquire(RateLimitType.MESSAGES)


def main() -> None:
    runner = pyperf.Runner()

    def bench(name: str, function: object, *args: object) -> None:
        runner.bench_func(name, function, *args, inner_loops=LOOPS)

    bench("time.monotonic_ns, for scale", repeat, time.monotonic_ns)
    bench("TokenBucket.take, time given", repeat, TokenBucket(PLENTY, PLENTY).take, 1, 0)
    bench("TokenBucket.take + clock", repeat_bucket, TokenBucket(PLENTY, PLENTY))
    gate = RateGate(TokenBucket(PLENTY, PLENTY), TokenBucket(PLENTY, PLENTY))
    bench("RateGate.admit, two buckets", repeat, gate.admit, 64, 10**9)

    limiter = RateLimiter(RateLimitConfig().with_messages(PLENTY, PLENTY))
    bench("RateLimiter.try_acquire, clock included", repeat, limiter.try_acquire, RateLimitType.MESSAGES)
    runner.bench_async_func("await RateLimiter.acquire", acquire_ours, limiter, inner_loops=LOOPS)

    if find_spec("limits"):
        import limits

        window = limits.strategies.FixedWindowRateLimiter(limits.storage.MemoryStorage())
        bench("limits fixed window hit", repeat, window.hit, limits.RateLimitItemPerSecond(PLENTY), "x")
    if find_spec("pyrate_limiter"):
        import pyrate_limiter

        rate = pyrate_limiter.Rate(10**9, pyrate_limiter.Duration.SECOND)
        pyrate = pyrate_limiter.Limiter(rate)
        bench("pyrate-limiter try_acquire", repeat, pyrate.try_acquire, "x")
    if find_spec("aiolimiter"):
        import aiolimiter

        async def acquire_theirs() -> None:
            limiter = aiolimiter.AsyncLimiter(PLENTY, 1)  # one per loop
            for _ in range(LOOPS):
                await limiter.acquire()

        runner.bench_async_func("aiolimiter await acquire", acquire_theirs, inner_loops=LOOPS)


if __name__ == "__main__":
    main()
