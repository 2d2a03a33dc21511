"""What several test files share: peers that speak raw frames, and transports that are not there."""
