"""Fragmentation: one message in many frames, by hand, by the client, and as a stream.

python examples/fragmentation.py
"""

import asyncio
from collections.abc import AsyncIterator

from fabric import (
    ConnectedClient,
    ConnectionId,
    Fragmenter,
    MessageTooLarge,
    Reassembler,
    WebSocketClient,
    WebSocketServer,
)

TEXT = "Fragments may be cut anywhere, even inside of a character such as 🦊."


def show_frames() -> None:
    print("A message cut into frames of at most 20 bytes (RFC 6455 §5.4)")
    frames = list(Fragmenter(20).fragment(TEXT))
    for frame in frames:
        print(f"  opcode {frame.opcode}, fin {frame.fin!s:<5}  {frame.payload!r}")

    reassembler = Reassembler(max_message_size=1000)
    connection = ConnectionId.new()
    for frame in frames:
        message = reassembler.feed(connection, frame)
        print(f"  put together again: {message.text!r}" if message else "  not complete yet: None")

    small = Reassembler(max_message_size=50)
    try:
        for frame in frames:
            small.feed(connection, frame)
    except MessageTooLarge as error:
        print(f"  with a limit of 50 bytes: {error}")


async def parts() -> AsyncIterator[str]:
    """What a message is made of, as it comes to be known."""
    for number in range(3):
        yield f"part {number}, "
        await asyncio.sleep(0.01)
    yield "end"


async def handler(client: ConnectedClient) -> None:
    """Receives one message part by part, without holding the whole, then answers one message."""
    received = [part async for part in client.recv_stream()]
    await client.send(f"came in {len(received)} parts: {received}")
    async for message in client:
        await client.send(message)


async def show_connection() -> None:
    print("Over a connection")
    async with WebSocketServer.bind("127.0.0.1:0", handler, compression=None) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        # A larger message goes out in frames of this size, so that pings and pongs get through between them.
        async with WebSocketClient.connect(url, fragment_size=16 * 1024, compression=None) as client:
            await client.send(parts())
            message = await client.recv()
            assert message  # recv gives None when the server has closed the connection; this one does not
            print(f"  an iterable is sent as one message; it {message.text}")
            await client.send(bytes(1_000_000))
            message = await client.recv()
            assert message
            print(f"  1,000,000 bytes in frames of 16 KiB came back as one message of {len(message):,}")


if __name__ == "__main__":
    show_frames()
    asyncio.run(show_connection())
