"""The client without an event loop that the Autobahn suite tests; as `echo_client.py`."""

from __future__ import annotations

import sys

import fabric.sync
from fabric import CompressionConfig, Error

LARGEST = 32 * 1024 * 1024  # the suite sends messages of 16 MB


def connect(url: str) -> fabric.sync.SyncClient:
    return fabric.sync.connect(
        url, auto_reconnect=False, max_message_size=LARGEST, compression=CompressionConfig(enabled=True)
    )


def run_case(url: str) -> None:
    """Echo until the suite ends the case, most often by a breach of the protocol."""
    try:
        with connect(url) as client:
            for message in client:
                client.send(message)
    except Error:
        return


def main(url: str) -> None:
    with connect(f"{url}/getCaseCount") as client:
        count = client.recv()
    if count is None:
        raise SystemExit("the fuzzing server did not say how many cases it has")
    for number in range(1, int(count.as_text()) + 1):
        run_case(f"{url}/runCase?case={number}&agent=fabric")
    with connect(f"{url}/updateReports?agent=fabric"):
        pass


if __name__ == "__main__":
    main(sys.argv[1])
