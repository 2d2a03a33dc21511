"""Builds the compiled modules of `fabric_ext`; everything else is in pyproject.toml.

FABRIC_DEBUG=1 switches Cython's bounds and overflow checks on. FABRIC_ONLY=mask,message builds only those modules.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("FABRIC_DEBUG") == "1"
ONLY = set(filter(None, os.environ.get("FABRIC_ONLY", "").split(",")))

# Modules that need more than their own .pyx.
EXTRA_SOURCES = {path.stem[1:]: [str(path)] for path in Path("fabric_ext").glob("_*.c")}


def extensions():
    for path in sorted(Path("fabric_ext").glob("*.pyx")):
        name = path.stem
        if ONLY and name not in ONLY:
            continue
        yield Extension(
            f"fabric_ext.{name}",
            [str(path), *EXTRA_SOURCES.get(name, [])],
            depends=[str(p) for p in Path("fabric_ext").glob("*.[ph]*")],
            extra_compile_args=["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-g0"],
        )


setup(
    ext_modules=cythonize(
        list(extensions()),
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": DEBUG,
            "initializedcheck": DEBUG,
            "cdivision": not DEBUG,
            "embedsignature": True,
        },
    )
)
