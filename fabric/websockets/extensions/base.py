"""What an extension is, and the two factories that negotiate one.

Messages are compressed by fabric's compiled code, so `permessage_deflate` is the only extension: these classes are here
for type annotations.
"""

from __future__ import annotations

from collections.abc import Sequence

from fabric.websockets.typing import ExtensionName, ExtensionParameter

__all__ = ["ClientExtensionFactory", "Extension", "ServerExtensionFactory"]


class Extension:
    """An extension as it was agreed on for one connection."""

    name: ExtensionName


class ClientExtensionFactory:
    """What a client offers."""

    name: ExtensionName

    def get_request_params(self) -> Sequence[ExtensionParameter]:
        """The parameters of the offer."""
        raise NotImplementedError

    def process_response_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> Extension:
        """What is agreed on when the server answers with `params`. Raises NegotiationError."""
        raise NotImplementedError


class ServerExtensionFactory:
    """What a server accepts."""

    name: ExtensionName

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], Extension]:
        """The parameters of the answer to an offer of `params`, and what is agreed on. Raises NegotiationError."""
        raise NotImplementedError
