"""`route`: a server whose handler depends on the path. Needs the package `werkzeug`."""

from __future__ import annotations

import http
import inspect
import ssl as ssl_module
import urllib.parse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from fabric.websockets.asyncio.server import Server, ServerConnection, serve
from fabric.websockets.http11 import Request, Response
from fabric.websockets.typing import PathLike

if TYPE_CHECKING:
    from werkzeug.routing import Map

__all__ = ["Router", "route", "unix_route"]


def check_werkzeug(name: str) -> None:
    try:
        import werkzeug.routing  # noqa: F401
    except ImportError:
        raise ImportError(f"{name}() requires werkzeug") from None


def route(
    url_map: Map,
    *args: Any,
    server_name: str | None = None,
    ssl: ssl_module.SSLContext | Literal[True] | None = None,
    create_router: type[Router] | None = None,
    **kwargs: Any,
) -> Server:
    """Serve WebSocket connections with the handlers of a `werkzeug.routing.Map`.

    A handler is the endpoint of a rule, and is called with the connection and with what the rule finds in the path.

    Args:
        url_map: rules with handlers as endpoints.
        args, kwargs: as for `serve`, without the handler.
        server_name: the server's name in redirects; by default what the Host header says.
        ssl: as for `serve`; or True: it is a proxy before this server that speaks TLS.
        create_router: makes the router: a subclass of `Router`.
    """
    check_werkzeug("route")
    scheme = "ws" if ssl is None else "wss"
    if ssl is not None and ssl is not True:
        kwargs["ssl"] = ssl
    router = (create_router or Router)(url_map, server_name, scheme)
    asked: Callable[[ServerConnection, Request], Any] | None = kwargs.pop("process_request", None)
    if asked is None:
        return serve(router.handler, *args, process_request=router.route_request, **kwargs)

    async def process_request(connection: ServerConnection, request: Request) -> Response | None:
        response = asked(connection, request)
        if inspect.isawaitable(response):
            response = await response
        return router.route_request(connection, request) if response is None else response

    return serve(router.handler, *args, process_request=process_request, **kwargs)


def unix_route(url_map: Map, path: PathLike | None = None, **kwargs: Any) -> Server:
    """Serve at the Unix socket `path`; see `route`."""
    check_werkzeug("unix_route")
    return route(url_map, unix=True, path=path, **kwargs)


class Router:
    """Finds the handler for a request; see `route`."""

    def __init__(self, url_map: Map, server_name: str | None = None, url_scheme: str = "ws") -> None:
        self.url_map = url_map
        self.server_name = server_name
        self.url_scheme = url_scheme
        for rule in self.url_map.iter_rules():
            rule.websocket = True

    def get_server_name(self, connection: Any, request: Request) -> str:
        """The server's name in redirects."""
        return request.headers["Host"] if self.server_name is None else self.server_name

    def redirect(self, connection: Any, url: str) -> Response:
        """The response that leads to `url`."""
        response: Response = connection.respond(http.HTTPStatus.FOUND, f"Found at {url}")
        response.headers["Location"] = url
        return response

    def not_found(self, connection: Any) -> Response:
        """The response where no rule matches."""
        response: Response = connection.respond(http.HTTPStatus.NOT_FOUND, "Not Found")
        return response

    def route_request(self, connection: Any, request: Request) -> Response | None:
        """Set `connection.handler` and `handler_kwargs` for a request; or return the response to send instead."""
        from werkzeug.exceptions import NotFound
        from werkzeug.routing import RequestRedirect

        rules = self.url_map.bind(server_name=self.get_server_name(connection, request), url_scheme=self.url_scheme)
        parsed = urllib.parse.urlparse(request.path)
        try:
            connection.handler, connection.handler_kwargs = rules.match(path_info=parsed.path, query_args=parsed.query)
        except RequestRedirect as redirect:
            return self.redirect(connection, redirect.new_url)
        except NotFound:
            return self.not_found(connection)
        return None

    async def handler(self, connection: ServerConnection) -> None:
        """Run the connection's handler."""
        await connection.handler(connection, **connection.handler_kwargs)
