"""Types of the signatures, under the names that `websockets.typing` has."""

from __future__ import annotations

import http
import logging
import os
from collections.abc import Sequence
from typing import Any, NewType

__all__ = [
    "Data",
    "ExtensionName",
    "ExtensionParameter",
    "LoggerLike",
    "Origin",
    "StatusLike",
    "Subprotocol",
]

# Of messages: text and binary.
Data = str | bytes
BytesLike = bytes | bytearray | memoryview
DataLike = str | bytes | bytearray | memoryview

LoggerLike = logging.Logger | logging.LoggerAdapter[Any]
PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]
StatusLike = http.HTTPStatus | int

# Of headers.
Origin = NewType("Origin", str)
Subprotocol = NewType("Subprotocol", str)
ExtensionName = NewType("ExtensionName", str)
ExtensionParameter = tuple[str, str | None]
ExtensionHeader = tuple[ExtensionName, Sequence[ExtensionParameter]]
ConnectionOption = NewType("ConnectionOption", str)
UpgradeProtocol = NewType("UpgradeProtocol", str)
