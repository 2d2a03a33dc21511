"""A configured client: headers, subprotocols, limits, and a connection that repairs itself.

The server of this example goes away in the middle and comes back; the client keeps its queue and identity.

    python examples/configured_client.py
"""

import asyncio
import logging

from fabric import (
    BackpressureConfig,
    ClientConfig,
    CompressionConfig,
    ConnectedClient,
    HeartbeatConfig,
    ReconnectConfig,
    ServerConfig,
    WebSocketClient,
    WebSocketServer,
)


def configure(url: str) -> ClientConfig:
    """Everything that can be set has a default; a wrong value raises at once and says what is allowed."""
    config = ClientConfig(
        url,
        connection_timeout=3,  # seconds for DNS, TCP, TLS and the upgrade together
        max_message_size=1024 * 1024,
        subprotocols=["prices.v2", "prices.v1"],
        heartbeat=HeartbeatConfig(ping_interval=10, ping_timeout=5),
        reconnect=ReconnectConfig(initial_delay=0.05, max_delay=1, max_attempts=100),
        compression=CompressionConfig(threshold=256),
    )
    # The same in the fluent style: each call returns a changed copy.
    return (
        config.with_header("X-Client", "example")
        .with_authorization("Bearer secret-token")
        .with_backpressure_config(BackpressureConfig().with_max_buffer_size(500))
    )


async def echo(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(f"{client.request.headers['X-Client']}: {message.text}")


async def main() -> None:
    def serve(port: int) -> WebSocketServer:
        return WebSocketServer(ServerConfig(f"127.0.0.1:{port}", subprotocols=["prices.v1", "prices.v2"]), echo)

    server = serve(0)
    await server.start()
    port = server.port
    config = configure(f"ws://127.0.0.1:{port}/")
    print("the config shows what differs from the defaults, and no secrets:")
    print(f"  {config}")

    again = asyncio.Event()
    client = await WebSocketClient.connect(
        config,
        on_disconnect=lambda _, error: print(f"disconnected: {error}"),
        on_reconnect=lambda _: again.set(),
    )
    print(f"connected:    subprotocol {client.subprotocol}, extensions {', '.join(client.extensions)}")
    await client.send("one")
    message = await client.recv()
    assert message
    print(f"received:     {message.text!r}")

    await server.shutdown()
    await client.send("two")  # kept until there is a connection again
    print(f"sent:         'two', while there is no connection ({client.state.name})")
    server = serve(port)
    await server.start()

    message = await client.recv()
    assert message
    print(f"received:     {message.text!r}")
    await again.wait()
    metrics = client.metrics
    print(f"reconnected:  {metrics.reconnections} time, one object, {metrics.messages_sent} messages sent")
    await client.close()
    await server.shutdown()


if __name__ == "__main__":
    # A lost connection is a warning; here the callback tells of it.
    logging.getLogger("fabric.client").setLevel(logging.ERROR)
    asyncio.run(main())
