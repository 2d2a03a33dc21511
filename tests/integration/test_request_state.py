"""What a request tells of its client, and what `process_request` hands to the connection."""

from __future__ import annotations

import contextlib
import ssl

import pytest

from fabric._http.messages import Request
from fabric.client import WebSocketClient
from support.serving import Held, serve
from support.tls import authority, client_context, server_context, with_certificate

Stack = contextlib.AsyncExitStack


async def test_the_state_of_a_request_is_the_connections(stack: Stack) -> None:
    requests: list[Request] = []

    async def judge(request: Request) -> None:
        request.state["user"] = request.query["user"]
        requests.append(request)

    held = Held()
    server = await serve(stack, held, process_request=judge)
    for user in ("ann", "bob"):
        async with WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/?user={user}") as client:
            served = await held.next()
            assert served.state_data == {"user": user}
            assert requests[-1].remote_addr == served.remote_addr == client.local_addr
            assert requests[-1].peer_certificate is None
            served.state_data["more"] = 1
            assert served.request.state == {"user": user, "more": 1}


@pytest.mark.parametrize("shown", [True, False])
async def test_the_certificate_of_a_client(stack: Stack, shown: bool) -> None:
    held = Held()
    context = server_context()
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    server = await serve(stack, held, ssl=context)
    used = client_context()
    if shown:
        with_certificate(used)
    async with WebSocketClient.connect(f"wss://localhost:{server.port}/", ssl=used):
        certificate = (await held.next()).request.peer_certificate
    assert (certificate is not None) == shown
    if certificate is not None:
        assert certificate["subject"]
