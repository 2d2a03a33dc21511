"""Numbers with units, as people write them on a command line and read them in a report.

Owns both directions, as pure functions. Reading raises ValueError with a sentence that says what is allowed.
"""

from __future__ import annotations

import re

__all__ = [
    "format_bytes",
    "format_count",
    "format_duration",
    "format_rate",
    "parse_duration",
    "parse_duration_or_inf",
    "parse_rate",
    "parse_size",
]

_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)(?:/s)?", re.IGNORECASE)

_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0, "min": 60.0, "h": 3600.0}
_BYTES = {
    "": 1,
    "b": 1,
    "k": 1024,
    "kb": 1000,
    "kib": 1024,
    "m": 1024**2,
    "mb": 1000**2,
    "mib": 1024**2,
    "g": 1024**3,
    "gb": 1000**3,
    "gib": 1024**3,
}
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6}


def _parse(text: str, units: dict[str, float] | dict[str, int], example: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    if match is None or match[2].lower() not in units:
        raise ValueError(f"{text!r}: expected something like {example}")
    return float(match[1]) * units[match[2].lower()]


def parse_duration(text: str) -> float:
    """Seconds in "10", "10s", "500ms", "2m" or "1h"; more than 0."""
    seconds = _parse(text, _SECONDS, "10, 500ms or 2m")
    if seconds <= 0:
        raise ValueError(f"{text!r}: expected more than 0")
    return seconds


def parse_duration_or_inf(text: str) -> float:
    """Seconds as in `parse_duration`, or "0", or "inf" for no end."""
    word = text.strip().lower()
    if word in ("0", "inf"):
        return float(word)
    return parse_duration(text)


def parse_size(text: str) -> int:
    """Bytes in "32", "64k", "64KiB" (1024 each) or "64kB" (1000 each)."""
    size = _parse(text, _BYTES, "32, 64k or 1M")
    if size != int(size):
        raise ValueError(f"{text!r}: expected a whole number of bytes")
    return int(size)


def parse_rate(text: str) -> float:
    """How many per second, in "500", "10k" or "1.5M/s"; more than 0."""
    rate = _parse(text, _COUNTS, "500, 10k or 1.5M")
    if rate <= 0:
        raise ValueError(f"{text!r}: expected more than 0")
    return rate


def _three_digits(value: float) -> str:
    """`value` with three significant digits, and never in scientific notation."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def format_duration(seconds: float) -> str:
    """Three digits and the unit that suits: "84.2 µs", "1.05 ms", "12.0 s", "3 min 20 s"."""
    if seconds >= 119.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale * 0.9995:
            return f"{_three_digits(seconds / scale)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def format_count(number: float) -> str:
    """A whole number with its thousands apart: "1,234,567"."""
    return f"{round(number):,}"


def format_rate(per_second: float) -> str:
    """Messages per second, to the message below ten thousand: "950", "402 k", "1.25 M"."""
    if per_second < 9_999.5:
        return format_count(per_second)
    if per_second < 999_500:
        return f"{_three_digits(per_second / 1e3)} k"
    return f"{_three_digits(per_second / 1e6)} M"


def format_bytes(size: float) -> str:
    """Bytes in binary units: "512 B", "64.0 KiB", "1.50 MiB"."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1023.5:
            return f"{_three_digits(size)} {unit}"
    return f"{_three_digits(size / 1024)} TiB"
