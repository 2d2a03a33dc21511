"""`fabric._config.policies`: what follows from the fields of more than one value."""

from __future__ import annotations

import pytest

from fabric._config.policies import MAX_RATE, MIN_RATE
from fabric.config import BackpressureConfig, PoolConfig, RateLimitConfig, ReconnectConfig
from fabric.ratelimit import RateLimiter, RateLimitType


def test_rates() -> None:
    config = RateLimitConfig().with_messages(2.5).with_bytes(1000, 5000).with_on_exceed("close")
    assert config.is_limited
    assert config.limit("messages") == (2.5, 3)
    assert config.limit("bytes") == (1000.0, 5000)
    assert config.limit("operations") is None
    assert RateLimitConfig().with_operations(0.1).limit("operations") == (0.1, 1)
    assert not RateLimitConfig().is_limited
    assert not config.with_messages(None).with_bytes(None).is_limited
    with pytest.raises(ValueError, match="bytes_per_second is None"):
        RateLimitConfig(bytes_burst=1)


@pytest.mark.parametrize("rate", [MIN_RATE, MAX_RATE])
@pytest.mark.parametrize("burst", [None, 1, 2**62])
def test_a_bucket_can_be_made_of_every_rate(rate: float, burst: int | None) -> None:
    limiter = RateLimiter(RateLimitConfig().with_messages(rate, burst))
    assert limiter.try_acquire(RateLimitType.MESSAGES).allowed


def test_delays_and_thresholds_are_in_order() -> None:
    with pytest.raises(ValueError, match=r"max_delay = 1\.0: expected at least initial_delay, which is 2"):
        ReconnectConfig(initial_delay=2, max_delay=1)
    with pytest.raises(ValueError, match=r"recovery_threshold = 0\.9: expected at most backpressure_threshold"):
        BackpressureConfig(recovery_threshold=0.9)
    with pytest.raises(ValueError, match=r"max_connections = 1: expected at least min_connections, which is 2"):
        PoolConfig(min_connections=2, max_connections=1)
