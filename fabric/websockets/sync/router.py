"""`route` for threads: a server whose handler depends on the path. Needs the package `werkzeug`."""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from fabric.websockets.asyncio.router import Router as AsyncRouter
from fabric.websockets.asyncio.router import check_werkzeug
from fabric.websockets.http11 import Request, Response
from fabric.websockets.sync.server import Server, ServerConnection, serve
from fabric.websockets.typing import PathLike

if TYPE_CHECKING:
    from werkzeug.routing import Map

__all__ = ["Router", "route", "unix_route"]


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
    asked: Callable[[ServerConnection, Request], Response | None] | None = kwargs.pop("process_request", None)
    if asked is None:
        return serve(router.handler, *args, process_request=router.route_request, **kwargs)

    def process_request(connection: ServerConnection, request: Request) -> Response | None:
        response = asked(connection, request)
        return router.route_request(connection, request) if response is None else response

    return serve(router.handler, *args, process_request=process_request, **kwargs)


def unix_route(url_map: Map, path: PathLike | None = None, **kwargs: Any) -> Server:
    """Serve at the Unix socket `path`; see `route`."""
    check_werkzeug("unix_route")
    return route(url_map, unix=True, path=path, **kwargs)


class Router(AsyncRouter):
    """Finds the handler for a request; see `route`."""

    def handler(self, connection: Any) -> Any:
        """Run the connection's handler."""
        return connection.handler(connection, **connection.handler_kwargs)
