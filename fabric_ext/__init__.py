"""The compiled core of `fabric`: leaves that need no event loop, and the connection above them.

picows' class layout is part of our binary, so another minor of picows than the one compiled against must not
be loaded: it is refused here, by a sentence, before any compiled module is.

Of picows only its compiled module is used (by `fabric_ext.transport`). To import the package would import its API as
well, with python-socks for proxies, which takes as long as half of `fabric`. That is put off until it is used.
"""

import importlib.util
import sys
from threading import RLock
from typing import Any

PICOWS_MINOR = "2.3"
"""The picows series that this build was compiled against; pyproject.toml pins the same."""


def _put_off_picows() -> None:
    """Let `picows` be a package whose submodules can be imported, and which is executed when it is asked for a name."""
    spec = importlib.util.find_spec("picows")
    if spec is None or spec.loader is None:
        return  # to import it says what is wrong
    package = importlib.util.module_from_spec(spec)
    unfinished = [spec.loader]
    lock = RLock()

    def ask(name: str) -> Any:
        with lock:  # held by one thread while it executes the package; in which names are asked for, too
            if unfinished:
                loader = unfinished.pop()
                try:
                    loader.exec_module(package)
                except BaseException:  # raised again for the next name, which would seem to be missing
                    unfinished.append(loader)
                    raise
        try:
            return vars(package)[name]
        except KeyError:
            raise AttributeError(f"module 'picows' has no attribute {name!r}") from None

    package.__getattr__ = ask  # type: ignore[method-assign]  # PEP 562
    sys.modules["picows"] = package


def _check_picows() -> None:
    if "picows" in sys.modules:
        from picows import __version__ as found  # type: ignore[attr-defined]
    else:
        _put_off_picows()
        # Not by importlib.metadata, which would double the time of `import fabric`.
        from picows.version import __version__ as found

    if found.split(".")[:2] != PICOWS_MINOR.split("."):
        raise ImportError(
            f"fabric was compiled against picows {PICOWS_MINOR} and cannot run on picows {found}; "
            f"install it with: pip install 'picows~={PICOWS_MINOR}.1'",
            name="picows",
        )


_check_picows()
