"""Extensions of the protocol: permessage-deflate, and no others."""

from fabric.websockets.extensions.base import ClientExtensionFactory, Extension, ServerExtensionFactory

__all__ = ["ClientExtensionFactory", "Extension", "ServerExtensionFactory"]
