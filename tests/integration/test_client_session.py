"""`on_session`: what an application says on each new session before anything else is sent and received."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import BackpressureConfig, CompressionConfig, HeartbeatConfig, ReconnectConfig
from fabric.error import ConnectionClosed, InvalidState, ReconnectTimeout
from fabric.server import ConnectedClient, WebSocketServer
from fabric_ext.protocol import State
from support.serving import serve, turns, until
from support.tls import client_context, server_context

Stack = contextlib.AsyncExitStack

QUICK = ReconnectConfig(initial_delay=0.001, max_delay=0.001, jitter=0)


class Login:
    """A server that wants a login first: it answers "hello NAME", then echoes, and keeps what it got of each session.

    Args:
        greetings: messages sent right behind the answer.
    """

    def __init__(self, *greetings: str) -> None:
        self.greetings = greetings
        self.sessions: list[list[str]] = []
        self.clients: list[ConnectedClient] = []

    async def __call__(self, client: ConnectedClient) -> None:
        got: list[str] = []
        self.sessions.append(got)
        self.clients.append(client)
        async for message in client:
            got.append(message.as_text())
            if len(got) == 1:
                await client.send_many([f"hello {message.as_text()}", *self.greetings])
            else:
                await client.send(message)

    def lose(self) -> None:
        """The connection that there is breaks."""
        self.clients[-1]._abort()


async def log_in(client: WebSocketClient) -> None:
    await client.send("me")
    answer = await client.recv()
    assert answer is not None
    assert answer.as_text() == "hello me"


async def connect(stack: Stack, server: WebSocketServer, **options: Any) -> WebSocketClient:
    options = {"on_session": log_in, "reconnect": QUICK, "compression": None} | options
    url = f"ws{'s' if server.config.ssl else ''}://127.0.0.1:{server.port}/"
    return await stack.enter_async_context(WebSocketClient.connect(url, **options))


async def text(client: WebSocketClient) -> str:
    message = await client.recv()
    assert message is not None
    return message.as_text()


async def test_it_speaks_first_on_each_session(stack: Stack) -> None:
    login = Login()
    calls: list[str] = []
    client = await connect(
        stack,
        await serve(stack, login),
        on_session=lambda client: (calls.append("session"), log_in(client))[1],
        on_connect=lambda _: calls.append("connect"),
        on_reconnect=lambda _: calls.append("reconnect"),
    )
    await client.send("one")
    assert await text(client) == "one"
    login.lose()
    await until(lambda: client.state is State.RECONNECTING)
    await client.send("queued")  # while there is no connection: behind the login
    assert await text(client) == "queued"
    assert login.sessions == [["me", "one"], ["me", "queued"]]
    await until(lambda: len(calls) == 4)
    assert calls == ["session", "connect", "session", "reconnect"]


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_the_session_goes_on_where_it_stood(stack: Stack, secure: bool) -> None:
    """With its compression windows, the counters, the messages that came behind the answer, and the identity."""
    login = Login("first", "second")
    context = server_context() if secure else None
    compression = CompressionConfig(threshold=0)
    server = await serve(stack, login, ssl=context, compression=compression)
    seen: list[Any] = []

    async def on_session(client: WebSocketClient) -> None:
        await log_in(client)
        seen.extend((client.id, client.url, client.subprotocol, await client.ping() > 0))

    tls = {"ssl": client_context()} if secure else {}
    client = await connect(stack, server, on_session=on_session, compression=compression, **tls)
    assert client.extensions
    assert [await text(client), await text(client)] == ["first", "second"]
    for number in range(20):
        await client.send(f"the same again, {number}")
        assert await text(client) == f"the same again, {number}"
    assert seen == [client.id, client.url, None, True]
    assert (client.messages_sent, client.messages_received) == (21, 23)
    assert client.metrics.total_connections == server.metrics.total_connections == 1
    assert await client.ping() > 0
    await client.close()
    assert (client.close_code, client.metrics.closes) == (1000, {1000: 1})


async def test_who_waits_in_recv_gets_nothing_of_it(stack: Stack) -> None:
    login = Login("feed")
    client = await connect(stack, await serve(stack, login))
    assert await text(client) == "feed"
    waiting = asyncio.create_task(client.recv())
    await turns()
    login.lose()
    message = await waiting
    assert message is not None
    assert message.as_text() == "feed"
    assert len(login.sessions) == 2


async def test_who_waits_in_recv_stream_gets_nothing_of_it(stack: Stack) -> None:
    login = Login()
    client = await connect(stack, await serve(stack, login))

    async def stream() -> list[str | bytes]:
        return [part async for part in client.recv_stream()]

    waiting = asyncio.create_task(stream())
    await turns()
    login.lose()
    await until(lambda: len(login.sessions) == 2 and client.is_connected)
    await login.clients[-1].send_parts(["a", "b"])
    assert await waiting == ["a", "b"]


async def test_what_came_behind_the_answer_goes_to_on_message(stack: Stack) -> None:
    login = Login("first", "second")
    got: list[str] = []
    await connect(stack, await serve(stack, login), on_message=lambda _, message: got.append(message.as_text()))
    await until(lambda: got == ["first", "second"])


async def test_more_came_than_its_queue_holds(stack: Stack) -> None:
    """The socket was not read any more, and is again."""
    login = Login(*map(str, range(100)))
    client = await connect(stack, await serve(stack, login), buffer_size=4)
    assert [await text(client) for _ in range(100)] == [str(number) for number in range(100)]
    got: list[str] = []
    server = await serve(stack, Login(*map(str, range(100))))
    await connect(stack, server, buffer_size=4, on_message=lambda _, message: got.append(message.as_text()))
    await until(lambda: len(got) == 100)


async def test_it_may_use_tasks_and_time_limits(stack: Stack) -> None:
    async def on_session(client: WebSocketClient) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(client.send("me"))
            answer = group.create_task(asyncio.wait_for(client.recv(), 20))
        message = answer.result()
        assert message is not None

    client = await connect(stack, await serve(stack, Login()), on_session=on_session)
    await client.send("more")
    assert await text(client) == "more"


async def test_a_plain_function_serves_too(stack: Stack) -> None:
    client = await connect(stack, await serve(stack, Login()), on_session=lambda client: client.send_nowait("me"))
    assert await text(client) == "hello me"


async def test_what_the_first_raises_connect_raises(stack: Stack) -> None:
    server = await serve(stack, Login())

    async def refuse(client: WebSocketClient) -> None:
        await log_in(client)
        raise KeyError("no such user")

    with pytest.raises(KeyError, match="no such user"):
        await connect(stack, server, on_session=refuse)
    await until(lambda: not server.connection_count)


async def test_what_a_later_one_raises_fails_that_attempt_alone(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    login = Login()
    calls: list[int] = []

    async def third_time_lucky(client: WebSocketClient) -> None:
        calls.append(1)
        await log_in(client)
        if len(calls) in (2, 3):
            raise asyncio.CancelledError if len(calls) == 2 else ValueError("not yet")

    server = await serve(stack, login)
    client = await connect(stack, server, on_session=third_time_lucky)
    login.lose()
    await until(lambda: len(calls) == 4 and client.is_connected)
    await client.send("after all")
    assert await text(client) == "after all"
    assert login.sessions == [["me"], ["me"], ["me"], ["me", "after all"]]
    assert "on_session raised" in caplog.text
    await until(lambda: server.connection_count == 1)
    assert client.metrics.active_connections == 1
    assert client.metrics.total_connections == 4


async def test_the_policy_may_say_that_it_is_final(stack: Stack) -> None:
    login = Login()
    calls: list[int] = []

    async def once(client: WebSocketClient) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise PermissionError("the user is gone")
        await log_in(client)

    policy = ReconnectConfig(initial_delay=0.001, decide=lambda error, _: not isinstance(error, PermissionError))
    client = await connect(stack, await serve(stack, login), on_session=once, reconnect=policy)
    login.lose()
    with pytest.raises(ReconnectTimeout) as raised:
        await client.recv()
    assert isinstance(raised.value.__cause__, PermissionError)
    assert len(calls) == 2


async def test_a_server_that_refuses_the_login_is_believed(stack: Stack) -> None:
    async def refuse(client: ConnectedClient) -> None:
        await client.recv()
        await client.close(1008, "who are you")

    with pytest.raises(ConnectionClosed) as raised:
        await connect(stack, await serve(stack, refuse))
    assert (raised.value.code, raised.value.reason) == (1008, "who are you")


async def test_a_connection_that_ends_meanwhile_fails_the_attempt(stack: Stack) -> None:
    """Also when the function waits for something else, or does not mind."""
    left: list[str] = []

    async def leave(client: ConnectedClient) -> None:
        await client.recv()
        await client.close(1001)

    async def wait_for_ever(client: WebSocketClient) -> None:
        await client.send("me")
        try:
            await asyncio.Event().wait()
        finally:
            left.append("cancelled")

    async def not_mind(client: WebSocketClient) -> None:
        await client.send("me")
        assert await client.recv() is None or left.append("none")
        await client.wait_closed()

    server = await serve(stack, leave)
    for function in (wait_for_ever, not_mind):
        with pytest.raises(ConnectionClosed) as raised:
            await connect(stack, server, on_session=function)
        assert raised.value.code == 1001
    assert left == ["cancelled"]


async def test_close_ends_a_repair_that_is_in_it(stack: Stack) -> None:
    login = Login()
    inside = asyncio.Event()

    async def second_hangs(client: WebSocketClient) -> None:
        await log_in(client)
        if len(login.sessions) > 1:
            inside.set()
            await asyncio.Event().wait()

    server = await serve(stack, login)
    client = await connect(stack, server, on_session=second_hangs)
    login.lose()
    await inside.wait()
    assert client.state.name == "RECONNECTING"
    await client.send("for later")
    await client.close()
    assert [message.as_text() for message in client.undelivered] == ["for later"]
    assert login.sessions[1] == ["me"]
    await until(lambda: not server.connection_count)


async def test_closing_in_it_is_final(stack: Stack) -> None:
    with pytest.raises(ConnectionClosed) as raised:
        await connect(stack, await serve(stack, Login()), on_session=lambda client: client.close(1000))
    assert raised.value.by == "local"


async def test_the_first_attempts_may_be_repeated(stack: Stack) -> None:
    calls: list[int] = []

    async def second_time_lucky(client: WebSocketClient) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise LookupError("not yet")
        await log_in(client)

    client = await connect(stack, await serve(stack, Login()), on_session=second_time_lucky, first_connect="retry")
    await client.send("more")
    assert await text(client) == "more"


async def test_its_client_is_good_only_until_it_returns(stack: Stack) -> None:
    kept: list[WebSocketClient] = []

    async def keep(client: WebSocketClient) -> None:
        kept.append(client)
        await log_in(client)

    client = await connect(stack, await serve(stack, Login()), on_session=keep)
    assert kept[0] is not client
    assert type(kept[0]) is type(client)
    for call in (kept[0].recv, lambda: kept[0].send("more")):
        with pytest.raises(InvalidState):
            await call()
    with pytest.raises(InvalidState):
        await kept[0].reconnect()
    await kept[0].close()
    assert client.is_connected


async def test_half_a_message_is_no_end(stack: Stack) -> None:
    begun = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def parts() -> Any:
        yield "a"
        yield "b"
        begun.set()
        await asyncio.Event().wait()

    async def on_session(client: WebSocketClient) -> None:
        tasks.append(asyncio.create_task(client.send_parts(parts())))
        await begun.wait()

    with pytest.raises(InvalidState, match="inside a message in parts"):
        await connect(stack, await serve(stack, Login()), on_session=on_session)
    tasks[0].cancel()
    await asyncio.wait(tasks)


async def test_what_the_application_keeps_at_its_client_it_finds(stack: Stack) -> None:
    class Mine(WebSocketClient):
        """A client with something of its own."""

        token: str

        async def log_in(self) -> None:
            await log_in(self)
            self.token = "t0ken"

    async def on_session(client: Mine) -> None:
        await client.log_in()

    server = await serve(stack, Login())
    async with Mine.connect(f"ws://127.0.0.1:{server.port}/", on_session=on_session) as client:
        assert client.token == "t0ken"


async def test_a_server_that_is_gone_is_found_out_by_the_heartbeat(stack: Stack) -> None:
    async def deaf(client: ConnectedClient) -> None:
        client._session_now.io.pause_reading()  # type: ignore[union-attr]
        await client.wait_closed()

    async def wait(client: WebSocketClient) -> None:
        await client.recv()

    server = await serve(stack, deaf)
    with pytest.raises(ConnectionClosed) as raised:
        await connect(stack, server, on_session=wait, heartbeat=HeartbeatConfig(ping_interval=0.01, ping_timeout=0.05))
    assert raised.value.code == 1006
    for client in server.clients():
        client._abort()


@pytest.mark.parametrize("outage", ["queue", "wait"])
async def test_others_send_after_it(stack: Stack, outage: str) -> None:
    login = Login()
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def on_session(client: WebSocketClient) -> None:
        await log_in(client)
        if len(login.sessions) > 1:
            inside.set()
            await go_on.wait()

    options = {"outage": outage, "backpressure": BackpressureConfig(max_buffer_size=10)}
    client = await connect(stack, await serve(stack, login), on_session=on_session, **options)
    login.lose()
    await inside.wait()
    sending = asyncio.create_task(_send(client, ("one", "two")))
    await turns()
    assert login.sessions[1] == ["me"]
    go_on.set()
    assert [await text(client), await text(client)] == ["one", "two"]
    await sending
    assert login.sessions[1] == ["me", "one", "two"]


async def _send(client: WebSocketClient, messages: tuple[str, ...]) -> None:
    for message in messages:
        await client.send(message)


async def test_a_function_that_cannot_be_called_is_refused_before() -> None:
    def no_argument() -> Awaitable[None]:
        raise AssertionError

    wrong: Callable[..., Any] = no_argument
    with pytest.raises(TypeError, match="on_session is called with"):
        WebSocketClient.connect("ws://localhost", on_session=wrong)
