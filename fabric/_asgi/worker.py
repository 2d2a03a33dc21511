"""The worker class for gunicorn: that of uvicorn, with other WebSockets."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

try:
    from uvicorn_worker import UvicornWorker as _UvicornWorker
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"fabric.asgi.UvicornWorker needs {error.name}: pip install gunicorn uvicorn-worker", name=error.name
    ) from None

__all__ = ["worker_class"]


@functools.cache
def worker_class(protocol: type[Any]) -> type[Any]:
    """The worker class whose WebSockets are `protocol`. Subclasses change `CONFIG_KWARGS`, as uvicorn's do."""

    class UvicornWorker(_UvicornWorker):  # type: ignore[misc]  # it has no types
        """`gunicorn -k fabric.asgi.UvicornWorker app:app`."""

        CONFIG_KWARGS: ClassVar[dict[str, Any]] = {**_UvicornWorker.CONFIG_KWARGS, "ws": protocol}

    return UvicornWorker
