"""`python -m fabric`, and the script `fabric`: the command line, see `fabric.cli`.

Owns what has to be settled before a command is imported: the standard streams, and what Ctrl-C does meanwhile.
"""

import os
import sys

__all__ = ["main"]

INTERRUPTED = 130  # the exit code


def main() -> int:
    """Run the command line of this process; return its exit code."""
    try:
        _open_streams()
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


if __name__ == "__main__":
    sys.exit(main())
