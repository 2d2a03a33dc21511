"""The release of `websockets` whose interface this package has."""

from __future__ import annotations

__all__ = ["commit", "tag", "version"]

released = True

tag = version = commit = "17.4"
