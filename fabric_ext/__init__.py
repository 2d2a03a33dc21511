"""The compiled core of `fabric`: leaves that need no event loop, and the connection above them.

picows' class layout is part of our binary, so another minor of picows than the one compiled against must not
be loaded: it is refused here, by a sentence, before any compiled module is.
"""

PICOWS_MINOR = "2.3"
"""The picows series that this build was compiled against; pyproject.toml pins the same."""


def _check_picows() -> None:
    # From picows, which is imported anyway: importlib.metadata would double the time of `import fabric`.
    from picows import __version__ as found  # type: ignore[attr-defined]

    if found.split(".")[:2] != PICOWS_MINOR.split("."):
        raise ImportError(
            f"fabric was compiled against picows {PICOWS_MINOR} and cannot run on picows {found}; "
            f"install it with: pip install 'picows~={PICOWS_MINOR}.1'",
            name="picows",
        )


_check_picows()
