"""ocpp, charging stations: a station and its back end boot, are cut, and boot again."""

import asyncio
import contextlib
from datetime import UTC, datetime

import websockets
from ocpp.routing import on
from ocpp.v16 import ChargePoint, call, call_result
from ocpp.v16.enums import RegistrationStatus


class Station(ChargePoint):
    @on("BootNotification")
    def booted(self, charge_point_vendor, charge_point_model, **_):
        now = datetime.now(UTC).isoformat()
        return call_result.BootNotification(current_time=now, interval=10, status=RegistrationStatus.accepted)


async def back_end(connection):
    assert connection.subprotocol == "ocpp1.6"
    station = Station(connection.request.path.strip("/"), connection)
    with contextlib.suppress(websockets.exceptions.ConnectionClosed):
        await station.start()


async def main():
    async with websockets.serve(back_end, "127.0.0.1", 0, subprotocols=["ocpp1.6"]) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/station-7"
        for _ in range(2):
            async with websockets.connect(url, subprotocols=["ocpp1.6"]) as connection:
                station = ChargePoint("station-7", connection)
                running = asyncio.ensure_future(station.start())
                request = call.BootNotification(charge_point_model="m", charge_point_vendor="v")
                answer = await station.call(request)
                assert answer.status == RegistrationStatus.accepted
                for accepted in server.connections:
                    accepted.transport.abort()
                try:
                    await running
                except websockets.exceptions.ConnectionClosedError:
                    print("cut")


asyncio.run(main())
print("done")
