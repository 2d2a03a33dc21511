"""The worker class for gunicorn: that of uvicorn, with WebSockets on fabric's core."""

from __future__ import annotations

from typing import Any, ClassVar

try:
    from uvicorn_worker import UvicornWorker as _UvicornWorker
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"fabric.asgi.UvicornWorker needs {error.name}: pip install gunicorn uvicorn-worker", name=error.name
    ) from None

__all__ = ["UvicornWorker"]


class UvicornWorker(_UvicornWorker):  # type: ignore[misc]  # it has no types
    """`gunicorn -k fabric.asgi.UvicornWorker app:app`. Subclasses change `CONFIG_KWARGS`, as uvicorn's do."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {**_UvicornWorker.CONFIG_KWARGS, "ws": "fabric.asgi:WebSocketProtocol"}
