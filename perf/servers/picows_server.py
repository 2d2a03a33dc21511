"""Peer: picows' own callback API from Python, as in its echo and broadcast examples."""

import asyncio

import rig
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

arguments = rig.options()
everybody: set[WSTransport] = set()


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())


class EchoTwice(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())


class Broadcast(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        everybody.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        everybody.discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            payload = frame.get_payload_as_bytes()
            for peer in everybody:
                peer.send(frame.msg_type, payload)


async def main() -> None:
    listener = Broadcast if arguments.broadcast else EchoTwice if arguments.twice else Echo

    def factory(request: WSUpgradeRequest) -> WSListener:
        return listener()

    server = await ws_create_server(
        factory,
        "127.0.0.1",
        0,
        ssl=rig.tls_context(arguments),
    )
    rig.announce(server.sockets[0].getsockname()[1])
    await asyncio.Future()


rig.run(main)
