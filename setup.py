"""Builds the compiled modules of `fabric_ext`, and the README as package indexes show it.

All else is in pyproject.toml.

FABRIC_DEBUG=1 keeps assertions and Cython's run-time checks, and builds under build/debug (see `make debug`).
FABRIC_ONLY=mask,message builds only those modules.
"""

import os
import re
import tomllib
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path("fabric_ext")
PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]
DEBUG = os.environ.get("FABRIC_DEBUG") == "1"
LINK = r"""(?P<mark>!?)\[(?P<words>[^\]]*)\]\((?P<link>[^)\s]+)\)|<img [^>]*src="(?P<source>[^"]+)"[^>]*>"""
ONLY = set(filter(None, os.environ.get("FABRIC_ONLY", "").split(",")))
BUILD = "build/debug" if DEBUG else "build/release"
JOBS = os.cpu_count() or 1

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "initializedcheck": DEBUG,
    "cdivision": not DEBUG,
    "embedsignature": True,
    "embedsignature.format": "clinic",
    # Cython's own functions do not check the type of `self`: `Ring.popleft(5)` would crash.
    "binding": False,
    # What Cython makes for copy and pickle reads C pointers as strings. A type that can be copied says how itself.
    "auto_pickle": False,
}


def extensions() -> list[Extension]:
    """One extension for each .pyx, with the hand-written C of the same name (`_mask.c` for `mask.pyx`)."""
    headers = sorted(map(str, SOURCE.glob("*.h")))
    found = []
    for path in sorted(SOURCE.glob("*.pyx")):
        if ONLY and path.stem not in ONLY:
            continue
        own = path.with_name(f"_{path.stem}.c")
        found.append(
            Extension(
                f"{SOURCE}.{path.stem}",
                [str(path), *([str(own)] if own.exists() else [])],
                include_dirs=[str(SOURCE)],
                depends=headers,
                define_macros=[] if DEBUG else [("CYTHON_WITHOUT_ASSERTIONS", "1")],
                # Cython writes helpers that a module may not use.
                extra_compile_args=[
                    *(["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-g0"]),
                    "-Wno-unused-function",
                ],
            )
        )
    return found


def description(repository: str | None) -> str:
    """The README as package indexes show it: without `<picture>`, and without the files beside it.

    Links to those lead to the `repository`, an address. If it is None, the words of the links stay and pictures go.
    """

    def shown(match: re.Match[str]) -> str:
        link = match["link"] or match["source"]
        if re.match(r"[a-z]+:|#", link):
            return match[0]
        is_picture = match["source"] or match["mark"]
        if repository is None:
            return "" if is_picture else match["words"]
        start, end = (place - match.start() for place in match.span("link" if match["link"] else "source"))
        raw = "?raw=true" if is_picture else ""
        return f"{match[0][:start]}{repository.rstrip('/')}/blob/main/{link}{raw}{match[0][end:]}"

    text = re.sub(r"</?picture>|<source [^>]*>", "", Path("README.md").read_text())
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.S)
    return re.sub(LINK, shown, text)


class Build(build_ext):
    """Runs Cython when compiling, not for metadata or an sdist, and only on what has changed."""

    def run(self) -> None:
        generated = cythonize(
            self.extensions,
            build_dir=f"{BUILD}/cython",
            compiler_directives=DIRECTIVES,
            force=bool(self.force),
            nthreads=JOBS if JOBS > 1 else 0,
        )
        for extension, ready in zip(self.extensions, generated, strict=True):
            extension.sources = ready.sources
        super().run()


# The guard matters: cythonize's workers import this file again where processes are spawned.
if __name__ == "__main__":
    setup(
        long_description=description(PROJECT.get("urls", {}).get("Source")),
        long_description_content_type="text/markdown",
        ext_modules=extensions(),
        cmdclass={"build_ext": Build},
        options={"build": {"build_base": BUILD}, "build_ext": {"parallel": JOBS}},
    )
