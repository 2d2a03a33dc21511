"""Routes: which handler a connection gets, by the path of its request.

Owns the form of routes and what fits them. Runs nothing: a server asks it for a handler, or calls it as one.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import unquote

from fabric._connection.callbacks import check_handler
from fabric._http.messages import Request, Response

__all__ = ["Router"]

Handler = Callable[..., Awaitable[Any]]
_Handler = TypeVar("_Handler", bound=Handler)

_PARAMETER = re.compile(r"\{(?P<name>[^{}:]*)(?::(?P<kind>[^{}:]*))?\}")

# Of each kind of parameter: what it may be in a path, and what the handler gets of it. Bounded, for int() is quadratic.
_KINDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "str": (r"[^/]+", unquote),
    "int": (r"-?[0-9]{1,18}", int),
    "uuid": (r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", uuid.UUID),
    "path": (r".+", unquote),
}


class Router:
    """Handlers by path. It is the handler of a server, which answers 404 where no route fits.

        router = Router()

        @router.route("/rooms/{room}")
        async def talk(client, room):
            ...

        @router.route("/users/{number:int}/feed")
        async def feed(client, number):
            ...

        server = WebSocketServer.bind("127.0.0.1:8080", router)

    A route is a path whose parts in braces are parameters, handed to the handler by name. `{name}` is one segment,
    percent-decoded, so that it may hold any character, a slash too; `{name:int}` is a whole number of at most 18
    digits, `{name:uuid}` a `uuid.UUID`, `{name:path}` all that follows, slashes included. Everything else must be there
    as it stands; the query does not matter, and `/rooms` is not `/rooms/`. The first route that fits, in the order in
    which they were added, is taken.
    """

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], dict[str, Callable[[str], Any]], Handler]] = []
        self._patterns: set[str] = set()

    def route(self, path: str) -> Callable[[_Handler], _Handler]:
        """A decorator: the coroutine function below it handles connections to `path`; see `add`."""
        _compiled(path)  # so that `@router.route`, without a path, is refused

        def add(handler: _Handler) -> _Handler:
            self.add(path, handler)
            return handler

        return add

    def add(self, path: str, handler: Handler) -> None:
        """Have `handler` handle connections to `path`.

        Args:
            path: a route.
            handler: `async def handler(client, **parameters)`.

        Raises:
            ValueError: `path` is no route, or is taken already.
            TypeError: `handler` cannot be called with the client and these parameters, or is no coroutine function.
        """
        pattern, kinds = _compiled(path)
        if pattern in self._patterns:
            raise ValueError(f"the route {path!r} has a handler already")
        check_handler(f"the handler of {path!r}", handler, ("client",), keywords=tuple(kinds))
        self._patterns.add(pattern)
        self._routes.append((path, re.compile(pattern), kinds, handler))

    def match(self, path: str) -> tuple[Handler, dict[str, Any]] | None:
        """The handler for `path`, percent-encoded and without a query, and its parameters; None where no route fits."""
        for _, pattern, kinds, handler in self._routes:
            if (found := pattern.fullmatch(path)) is not None:
                return handler, {name: kind(found[name]) for name, kind in kinds.items()}
        return None

    def route_of(self, path: str) -> str | None:
        """The route that fits `path`, as it was given to `add`; None where none does."""
        return next((route for route, pattern, _, _ in self._routes if pattern.fullmatch(path)), None)

    def respond(self, request: Request) -> Response | None:
        """404 to a request that no route fits, else None: what `process_request` returns. A server asks by itself."""
        if self.match(request.raw_path) is None:
            return Response(404, body="there is nothing at this path\n")
        return None

    async def __call__(self, client: Any) -> None:
        """Handle a connection."""
        found = self.match(client.request.raw_path)
        if found is None:
            await client.close(1008, "there is nothing at this path")
            return
        handler, parameters = found
        await handler(client, **parameters)

    def __repr__(self) -> str:
        return f"<Router, {len(self._routes)} routes>"


def _compiled(path: str) -> tuple[str, dict[str, Callable[[str], Any]]]:
    """A route as a regular expression, and what makes each of its parameters out of text."""
    if not isinstance(path, str):
        raise TypeError(f"a route is a str, not {type(path).__name__}")
    if not path.startswith("/") or not path.isascii() or re.search(r"[?#\s\x00-\x1f\x7f]", path):
        raise ValueError(f"the route {path!r} is no path: expected a '/', then ASCII, percent-encoded, without a query")
    pattern, at, kinds = "", 0, {}
    for parameter in _PARAMETER.finditer(path):
        name, kind = parameter["name"], parameter["kind"] or "str"
        if not name.isidentifier() or name == "client" or name in kinds:
            raise ValueError(f"the route {path!r}: {name!r} is no name for a parameter, or stands twice")
        if kind not in _KINDS:
            raise ValueError(f"the route {path!r}: {kind!r} is no kind of parameter, those are {', '.join(_KINDS)}")
        expression, kinds[name] = _KINDS[kind]
        pattern += _literal(path, at, parameter.start()) + f"(?P<{name}>{expression})"
        at = parameter.end()
    return pattern + _literal(path, at, len(path)), kinds


def _literal(path: str, start: int, end: int) -> str:
    text = path[start:end]
    if "{" in text or "}" in text:
        raise ValueError(f"the route {path!r} has a brace that belongs to no parameter")
    return re.escape(text)
