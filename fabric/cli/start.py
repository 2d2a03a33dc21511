"""The beginning of the command line: `python -m fabric`, and the script `fabric`.

Owns what has to be settled before a command is imported: whether this package has been overwritten by another one, the
standard streams, and what Ctrl-C does meanwhile.
"""

import os
import sys

from fabric import _namesake

__all__ = ["main"]

FAILURE, INTERRUPTED = 1, 130  # exit codes


def main() -> int:
    """Run the command line of this process; return its exit code."""
    try:
        _open_streams()
        if _namesake.is_overwritten():
            print(f"fabric: {_namesake.advice()}", file=sys.stderr)
            return FAILURE
        from fabric.cli.main import main as run  # takes a while, in which Ctrl-C may come

        return run()
    except KeyboardInterrupt:
        return INTERRUPTED


def _open_streams() -> None:
    """Read from and write to nowhere where a standard stream was closed.

    Else the next descriptor that is opened gets its number: libuv aborts the process over that.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, closefd=False))
