"""permessage-deflate (RFC 7692): what is offered, accepted and agreed on. `fabric_ext.deflate` compresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fabric._config.compression import CompressionConfig
from fabric.websockets.exceptions import (
    DuplicateParameter,
    InvalidParameterName,
    InvalidParameterValue,
    NegotiationError,
)
from fabric.websockets.extensions.base import ClientExtensionFactory, Extension, ServerExtensionFactory
from fabric.websockets.typing import ExtensionName, ExtensionParameter
from fabric_ext.deflate import Codec, DeflateCodec

__all__ = [
    "ClientPerMessageDeflateFactory",
    "PerMessageDeflate",
    "ServerPerMessageDeflateFactory",
    "enable_client_permessage_deflate",
    "enable_server_permessage_deflate",
]

_NAME = ExtensionName("permessage-deflate")
_BITS = {str(bits): bits for bits in range(8, 16)}
_SETTINGS = {"level", "memLevel", "method", "strategy"}  # of zlib.compressobj
_DEFAULTS = {"memLevel": 5}
_THRESHOLD = CompressionConfig().threshold  # bytes below which a message goes out plain


class PerMessageDeflate(Extension):
    """What two ends agreed on.

    Attributes:
        remote_no_context_takeover, local_no_context_takeover: what that end sends refers to no earlier message.
        remote_max_window_bits, local_max_window_bits: the window of what that end sends is 2 ** bits bytes.
        compress_settings: `level` and `memLevel`, as for `zlib.compressobj`.
    """

    name = _NAME

    def __init__(
        self,
        remote_no_context_takeover: bool,
        local_no_context_takeover: bool,
        remote_max_window_bits: int,
        local_max_window_bits: int,
        compress_settings: dict[str, Any] | None = None,
    ) -> None:
        self.remote_no_context_takeover = remote_no_context_takeover
        self.local_no_context_takeover = local_no_context_takeover
        self.remote_max_window_bits = remote_max_window_bits
        self.local_max_window_bits = local_max_window_bits
        self.compress_settings = compress_settings or {}

    def __repr__(self) -> str:
        return (
            f"PerMessageDeflate(remote_no_context_takeover={self.remote_no_context_takeover}, "
            f"local_no_context_takeover={self.local_no_context_takeover}, "
            f"remote_max_window_bits={self.remote_max_window_bits}, "
            f"local_max_window_bits={self.local_max_window_bits})"
        )

    def codec(self) -> Codec:
        """What compresses and decompresses for one connection."""
        level = self.compress_settings.get("level", -1)
        return DeflateCodec(
            own_window_bits=self.local_max_window_bits,
            peer_window_bits=self.remote_max_window_bits,
            own_takeover=not self.local_no_context_takeover,
            peer_takeover=not self.remote_no_context_takeover,
            level=None if level < 0 else level,
            mem_level=self.compress_settings.get("memLevel", 8),
            threshold=_THRESHOLD,
        )


class _Terms:
    """The four parameters, as an offer or an answer has them: absent is False or None."""

    def __init__(self, params: Sequence[ExtensionParameter], *, is_offer: bool) -> None:
        self.server_no_context_takeover = False
        self.client_no_context_takeover = False
        self.server_max_window_bits: int | None = None
        self.client_max_window_bits: int | Literal[True] | None = None
        seen = set()
        for name, value in params:
            if name in seen:
                raise DuplicateParameter(name)
            if not hasattr(self, name):
                raise InvalidParameterName(name)
            seen.add(name)
            if name.endswith("takeover"):
                if value is not None:
                    raise InvalidParameterValue(name, value)
                setattr(self, name, True)
            elif value is None and is_offer and name == "client_max_window_bits":
                self.client_max_window_bits = True
            elif value in _BITS:
                setattr(self, name, _BITS[value])
            else:
                raise InvalidParameterValue(name, value)


def _parameters(terms: Any) -> list[ExtensionParameter]:
    """The parameters that say what `terms` has."""
    params: list[ExtensionParameter] = [
        (name, None) for name in ("server_no_context_takeover", "client_no_context_takeover") if getattr(terms, name)
    ]
    for name in ("server_max_window_bits", "client_max_window_bits"):
        bits = getattr(terms, name)
        if bits:
            params.append((name, None if bits is True else str(bits)))
    return params


def _check_settings(settings: dict[str, Any] | None, own: str) -> None:
    if settings is None:
        return
    if "wbits" in settings:
        raise ValueError(f"compress_settings must not include wbits, set {own}_max_window_bits instead")
    unknown = sorted(set(settings) - _SETTINGS)
    if unknown:
        raise ValueError(f"compress_settings: {unknown[0]} is not supported, only level and memLevel are")


def _refuse_twice(accepted: Sequence[Extension], what: str) -> None:
    if any(other.name == _NAME for other in accepted):
        raise NegotiationError(f"{what} duplicate {_NAME}")


class ClientPerMessageDeflateFactory(ClientExtensionFactory):
    """What a client offers.

    Args:
        server_no_context_takeover, client_no_context_takeover: that end is to refer to no earlier message.
        server_max_window_bits: 8 to 15, or None to leave it to the server.
        client_max_window_bits: 9 to 15, True to leave it to the server, None for 15.
        compress_settings: `level` and `memLevel`, as for `zlib.compressobj`.

    Raises:
        ValueError: a number is out of its range, or a setting is not supported.
    """

    name = _NAME

    def __init__(
        self,
        server_no_context_takeover: bool = False,
        client_no_context_takeover: bool = False,
        server_max_window_bits: int | None = None,
        client_max_window_bits: int | Literal[True] | None = True,
        compress_settings: dict[str, Any] | None = None,
    ) -> None:
        if server_max_window_bits is not None and not 8 <= server_max_window_bits <= 15:
            raise ValueError("server_max_window_bits must be between 8 and 15")
        if client_max_window_bits not in (None, True) and not 9 <= client_max_window_bits <= 15:
            raise ValueError("client_max_window_bits must be between 9 and 15")
        _check_settings(compress_settings, "client")
        self.server_no_context_takeover = server_no_context_takeover
        self.client_no_context_takeover = client_no_context_takeover
        self.server_max_window_bits = server_max_window_bits
        self.client_max_window_bits = client_max_window_bits
        self.compress_settings = compress_settings

    def get_request_params(self) -> Sequence[ExtensionParameter]:
        """The parameters of the offer."""
        return _parameters(self)

    def process_response_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> PerMessageDeflate:
        """What is agreed on when the server answers with `params`. Raises NegotiationError (RFC 7692 §7.1)."""
        _refuse_twice(accepted_extensions, "received")
        answer = _Terms(params, is_offer=False)
        if self.server_no_context_takeover and not answer.server_no_context_takeover:
            raise NegotiationError("expected server_no_context_takeover")
        if self.server_max_window_bits is not None:
            if answer.server_max_window_bits is None:
                raise NegotiationError("expected server_max_window_bits")
            if answer.server_max_window_bits > self.server_max_window_bits:
                raise NegotiationError("unsupported server_max_window_bits")
        own, wanted = answer.client_max_window_bits, self.client_max_window_bits
        if wanted is None and own is not None:
            raise NegotiationError("unexpected client_max_window_bits")
        if wanted is not None and wanted is not True:
            if own is not None and own > wanted:
                raise NegotiationError("unsupported client_max_window_bits")
            own = own or wanted
        if own == 8:
            raise NegotiationError("unsupported client_max_window_bits = 8, use 9")
        return PerMessageDeflate(
            answer.server_no_context_takeover,
            self.client_no_context_takeover or answer.client_no_context_takeover,
            answer.server_max_window_bits or 15,
            own or 15,
            self.compress_settings,
        )


class ServerPerMessageDeflateFactory(ServerExtensionFactory):
    """What a server accepts.

    Args:
        server_no_context_takeover, client_no_context_takeover: that end is to refer to no earlier message.
        server_max_window_bits: 9 to 15, or None for what the client asks for.
        client_max_window_bits: 8 to 15, or None for what the client asks for.
        compress_settings: `level` and `memLevel`, as for `zlib.compressobj`.
        require_client_max_window_bits: decline clients that cannot be told `client_max_window_bits`.

    Raises:
        ValueError: a number is out of its range, or a setting is not supported.
    """

    name = _NAME

    def __init__(
        self,
        server_no_context_takeover: bool = False,
        client_no_context_takeover: bool = False,
        server_max_window_bits: int | None = None,
        client_max_window_bits: int | None = None,
        compress_settings: dict[str, Any] | None = None,
        require_client_max_window_bits: bool = False,
    ) -> None:
        if server_max_window_bits is not None and not 9 <= server_max_window_bits <= 15:
            raise ValueError("server_max_window_bits must be between 9 and 15")
        if client_max_window_bits is not None and not 8 <= client_max_window_bits <= 15:
            raise ValueError("client_max_window_bits must be between 8 and 15")
        _check_settings(compress_settings, "server")
        if client_max_window_bits is None and require_client_max_window_bits:
            raise ValueError("require_client_max_window_bits is enabled, but client_max_window_bits isn't configured")
        self.server_no_context_takeover = server_no_context_takeover
        self.client_no_context_takeover = client_no_context_takeover
        self.server_max_window_bits = server_max_window_bits
        self.client_max_window_bits = client_max_window_bits
        self.compress_settings = compress_settings
        self.require_client_max_window_bits = require_client_max_window_bits

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        """The parameters of the answer to an offer of `params`, and what is agreed on. Raises NegotiationError."""
        _refuse_twice(accepted_extensions, "skipped")
        terms = _Terms(params, is_offer=True)
        terms.server_no_context_takeover |= self.server_no_context_takeover
        terms.client_no_context_takeover |= self.client_no_context_takeover
        own = self.server_max_window_bits
        if own is not None:
            terms.server_max_window_bits = min(own, terms.server_max_window_bits or own)
        if terms.server_max_window_bits == 8:
            raise NegotiationError("unsupported server_max_window_bits = 8, use 9")
        # Only a client that names this parameter can be told a value (RFC 7692 §7.1.2.2).
        peers = self.client_max_window_bits
        if terms.client_max_window_bits is None:
            if self.require_client_max_window_bits:
                raise NegotiationError("required client_max_window_bits")
        elif terms.client_max_window_bits is True:
            terms.client_max_window_bits = peers
        elif peers is not None:
            terms.client_max_window_bits = min(peers, terms.client_max_window_bits)
        agreed = PerMessageDeflate(
            terms.client_no_context_takeover,
            terms.server_no_context_takeover,
            terms.client_max_window_bits or 15,
            terms.server_max_window_bits or 15,
            self.compress_settings,
        )
        return _parameters(terms), agreed


def enable_client_permessage_deflate(
    extensions: Sequence[ClientExtensionFactory] | None,
) -> Sequence[ClientExtensionFactory]:
    """`extensions` with permessage-deflate, at its default settings unless it is there already."""
    extensions = list(extensions or ())
    if all(each.name != _NAME for each in extensions):
        extensions.append(ClientPerMessageDeflateFactory(compress_settings=dict(_DEFAULTS)))
    return extensions


def enable_server_permessage_deflate(
    extensions: Sequence[ServerExtensionFactory] | None,
) -> Sequence[ServerExtensionFactory]:
    """`extensions` with permessage-deflate, at its default settings unless it is there already."""
    extensions = list(extensions or ())
    if all(each.name != _NAME for each in extensions):
        extensions.append(
            ServerPerMessageDeflateFactory(
                server_max_window_bits=12, client_max_window_bits=12, compress_settings=dict(_DEFAULTS)
            )
        )
    return extensions
