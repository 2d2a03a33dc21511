"""Peer: socketify, Python callbacks on uWebSockets' C++ loop (it brings its own event loop, on libuv)."""

import socket

import rig
from socketify import App, AppListenOptions, CompressOptions, OpCode

arguments = rig.options()


def echo(ws: object, message: str | bytes, opcode: OpCode) -> None:
    ws.send(message, opcode)  # type: ignore[attr-defined]


def enter(ws: object) -> None:
    ws.subscribe("everybody")  # type: ignore[attr-defined]


def enter_topics(ws: object) -> None:
    for topic in next(subscribed):
        ws.subscribe(topic)  # type: ignore[attr-defined]


def fan_out(ws: object, message: str | bytes, opcode: OpCode) -> None:
    for topic in topics:
        app.publish(topic, message, opcode)


def publish(ws: object, message: str | bytes, opcode: OpCode) -> None:
    app.publish("everybody", message, opcode)


def free_port() -> int:
    """socketify does not tell which port it was given, so one is chosen for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


behaviour = {
    "compression": CompressOptions.SHARED_COMPRESSOR if arguments.deflate else CompressOptions.DISABLED,
    "max_payload_length": 10 * 1024 * 1024,
    "max_backpressure": 64 * 1024 * 1024,
    "idle_timeout": 120,
    "message": publish if arguments.broadcast else echo,
}
if arguments.broadcast:
    behaviour["open"] = enter
topics, subscribed = rig.published(arguments), rig.subscribed(arguments)
if topics:
    behaviour |= {"open": enter_topics, "message": fan_out}
app = App()
app.ws("/*", behaviour)
port = free_port()
app.listen(AppListenOptions(port=port, host="127.0.0.1"), lambda config: rig.announce(port))
app.run()
