"""The other package that is imported as `fabric`: an SSH tool, called `fabric` on PyPI too.

Owns how its files are found beside ours, and what is said then. pip lets the two overwrite each other's files without a
word: `__init__.py`, `__main__.py`, `auth.py`, `config.py` and more. Imports nothing of this package, whose files may be
the other's.
"""

import os
import sys
import warnings

__all__ = ["advice", "foreign_files", "is_overwritten", "warn_of_foreign_files"]

FOLDER = os.path.dirname(os.path.abspath(__file__))

# Modules of the SSH tool of which this package has none by the same name.
FOREIGN = ("executor.py", "transfer.py", "tunnels.py")


def foreign_files(folder: str = FOLDER) -> list[str]:
    """The files of the SSH tool that lie beside ours; those that the two have in common are not told apart."""
    return [name for name in FOREIGN if os.path.exists(os.path.join(folder, name))]


def is_overwritten() -> bool:
    """Is the package `fabric` that was imported the SSH tool, installed over this one?"""
    return "WebSocketClient" not in getattr(sys.modules.get("fabric"), "__all__", ())


def advice(folder: str = FOLDER) -> str:
    """What to do, in one sentence."""
    return (
        f"two packages have been installed into {folder}: websocket-fabric and the SSH tool `fabric`, which overwrite "
        "each other's files. Keep one of them in an environment: "
        "pip uninstall -y fabric websocket-fabric && pip install websocket-fabric"
    )


def warn_of_foreign_files() -> None:
    """Warn where `fabric` is imported and finds such files; called once, by the package."""
    if foreign_files():
        warnings.warn(advice(), RuntimeWarning, stacklevel=3)
