"""The client that the Autobahn suite tests: runs all cases of the fuzzing server at a URL, echoing."""

from __future__ import annotations

import sys

import uvloop

from fabric import ClientConfig, CompressionConfig, Error, WebSocketClient

LARGEST = 32 * 1024 * 1024  # the suite sends messages of 16 MB


def config(url: str) -> ClientConfig:
    return ClientConfig(
        url,
        auto_reconnect=False,
        max_message_size=LARGEST,
        compression=CompressionConfig(enabled=True),
    )


async def run_case(url: str) -> None:
    """Echo until the suite ends the case, most often by a breach of the protocol."""
    try:
        async with WebSocketClient.connect(config(url)) as client:
            async for message in client:
                await client.send(message)
    except Error:
        return


async def main(url: str) -> None:
    async with WebSocketClient.connect(config(f"{url}/getCaseCount")) as client:
        count = await client.recv()
    if count is None:
        raise SystemExit("the fuzzing server did not say how many cases it has")
    for number in range(1, int(count.as_text()) + 1):
        await run_case(f"{url}/runCase?case={number}&agent=fabric")
    async with WebSocketClient.connect(config(f"{url}/updateReports?agent=fabric")):
        pass


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
