"""What a message and a raw frame cost from Python.

    python perf/micro_frame.py              pyperf's options apply

Connections do not take this way, they frame in compiled code; this is what tools, tests and proxies pay.
The frames of websockets and wsproto stand beside ours if they are installed.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import pyperf

from fabric.message import Frame, Message

SIZES = (16, 1024, 65_536)
KEY = b"\x37\xfa\x21\x3d"


def main() -> None:
    runner = pyperf.Runner()
    bench = runner.bench_func

    order = {"symbol": "BTCUSD", "side": "buy", "price": 64_123.5, "quantity": 2}
    message, text = Message.json(order), Message.json(order).as_text()
    bench("Message(str)", Message, text)
    bench("Message(bytes)", Message, b"x" * 32)
    bench("Message.json", Message.json, order)
    bench("Message.parse_json", message.parse_json)
    bench("Message.parse_json(type)", message.parse_json, dict[str, str | float])
    bench("Message.as_bytes", message.as_bytes)

    for size in SIZES:
        frame = Frame(2, bytes(size))
        plain, masked = frame.encode(), frame.encode(KEY)
        bench(f"Frame.encode {size}", frame.encode)
        bench(f"Frame.encode masked {size}", frame.encode, KEY)
        bench(f"Frame.parse {size}", Frame.parse, plain)
        bench(f"Frame.parse masked {size}", Frame.parse, masked)
        if find_spec("websockets"):
            from websockets.frames import Frame as WebsocketsFrame
            from websockets.frames import Opcode

            peer = WebsocketsFrame(Opcode.BINARY, bytes(size))
            bench(f"websockets Frame.serialize {size}", partial(peer.serialize, mask=False))
            bench(f"websockets Frame.serialize masked {size}", partial(peer.serialize, mask=True))
        if find_spec("wsproto"):
            from wsproto.frame_protocol import FrameProtocol

            protocol = FrameProtocol(client=False, extensions=[])
            bench(f"wsproto send_data {size}", protocol.send_data, bytes(size), True)


if __name__ == "__main__":
    main()
