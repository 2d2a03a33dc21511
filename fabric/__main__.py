"""`python -m fabric`: the command line, see `fabric.cli`."""

import sys

from fabric.cli.start import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
