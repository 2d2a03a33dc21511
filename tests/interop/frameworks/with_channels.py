"""Django Channels: see `test_frameworks`. A consumer of events, with a layer of channels in memory."""

from typing import Any

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
    ROOT_URLCONF=__name__,
    SECRET_KEY="of no use",
    USE_TZ=True,
)
django.setup()
urlpatterns: list[Any] = []


class Echo(AsyncWebsocketConsumer):
    """Sends what it gets to the group of all who are connected, which is its only member."""

    async def connect(self) -> None:
        self.group = f"echo-{id(self)}"
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept("chat" if "chat" in self.scope["subprotocols"] else None)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if text_data is not None and text_data.startswith("close "):
            code, reason = text_data.split(" ", 2)[1:]
            await self.close(int(code), reason)
        else:
            await self.channel_layer.group_send(
                self.group, {"type": "echo.message", "text": text_data, "bytes": bytes_data}
            )

    async def echo_message(self, event: dict[str, Any]) -> None:
        await self.send(event["text"], event["bytes"])

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.group, self.channel_name)


class Denied(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        await self.close()


app = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": URLRouter([path("echo", Echo.as_asgi()), path("denied", Denied.as_asgi())]),
    }
)
