"""What a command shows: results on standard output, everything else on standard error.

Owns the terminal: whether there is one, how wide it is, which characters it can show, and the one live line
of progress. Where there is no terminal, progress becomes a line every few seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from typing import TextIO

__all__ = ["Screen", "printable"]

SPARSE = 5.0  # seconds between two lines of progress where there is no terminal
MAX_WIDTH = 100  # columns; longer lines are hard to read
PROBE = "█▁µ└▲"  # an encoding that has these has all that is used here

_ASCII = str.maketrans({"µ": "u", "·": "-", "–": "-", "—": "-", "×": "x", "±": "+/-", "→": "->", "…": "...", "✓": "+"})
# Control characters, which steer a terminal, and those that make text read in another order than it stands.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_STYLES = {"bold": "\x1b[1m", "dim": "\x1b[2m"}


def printable(text: str) -> str:
    """`text` from elsewhere, made safe for a terminal: control characters are shown as escapes."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def _can_show(stream: TextIO) -> bool:
    try:
        PROBE.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class Screen:
    """Where a command writes.

    Args:
        out: for results.
        err: for progress and remarks.
        quiet: say nothing but results and errors.
    """

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None, *, quiet: bool = False) -> None:
        self._out = out
        self._err = err
        self.quiet = quiet
        self.unicode = _can_show(self.out)
        self.is_terminal = self.out.isatty()
        self.is_live = self.err.isatty() and os.environ.get("TERM") != "dumb"
        plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        self._has_colour = self.is_terminal and not plain
        self._err_unicode = _can_show(self.err)
        self._line_is_live = False
        self._last_sparse = time.monotonic()

    @property
    def out(self) -> TextIO:
        """Where results go. Not kept: while a line is edited, `sys.stdout` is one that writes above it."""
        return sys.stdout if self._out is None else self._out

    @property
    def err(self) -> TextIO:
        """Where all else goes."""
        return sys.stderr if self._err is None else self._err

    @property
    def width(self) -> int:
        """Columns to use: those of the terminal up to a readable number, 80 where there is none."""
        return min(shutil.get_terminal_size((80, 24)).columns, MAX_WIDTH) if self.is_terminal else 80

    def style(self, text: str, style: str) -> str:
        """`text` in "bold" or "dim", where that can be shown."""
        return f"{_STYLES[style]}{text}\x1b[0m" if self._has_colour else text

    def say(self, text: str = "") -> None:
        """A line of result."""
        self.clear()
        self._write(self.out, text if self.unicode else text.translate(_ASCII))

    def note(self, text: str) -> None:
        """A remark: a line that is not a result."""
        if not self.quiet:
            self.complain(text)

    def complain(self, text: str) -> None:
        """A line that is shown even when the command shall be quiet."""
        self.clear()
        self.out.flush()  # on one terminal, what was said before stands before
        self._write(self.err, text if self._err_unicode else text.translate(_ASCII))

    def progress(self, text: str) -> None:
        """How far it is: replaces the last such line on a terminal; elsewhere a line now and then."""
        if self.quiet:
            return
        text = text if self._err_unicode else text.translate(_ASCII)
        if self.is_live:
            columns = shutil.get_terminal_size((80, 24)).columns
            self.out.flush()
            self.err.write(f"\r\x1b[2K{text[: columns - 1]}")
            self.err.flush()
            self._line_is_live = True
        elif time.monotonic() - self._last_sparse >= SPARSE:
            self._last_sparse = time.monotonic()
            self._write(self.err, text)

    def clear(self) -> None:
        """Take the live line away."""
        if self._line_is_live:
            self.err.write("\r\x1b[2K")
            self.err.flush()
            self._line_is_live = False

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
