"""Compression: `Compressor` and `Decompressor` alone, and negotiating the extensions (RFC 7692 §5, §7.1).

Owns what the extension headers say and mean. Never touches a socket or a frame, nor the bytes of a message:
those are `fabric_ext.deflate`'s.

permessage-deflate is offered to everybody. permessage-zstd is known to `fabric` alone: it is offered only
where the configuration says `algorithm="zstd"`, before permessage-deflate, which any other server then picks.
It has the same four parameters (windows of 10 to 15 bits), and `dictionary`, the CRC-32 of the dictionary as
eight hexadecimal digits: a server repeats it if it has the same one, and otherwise neither side uses one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fabric._config.compression import CompressionConfig
from fabric._config.defaults import DEFAULT_MAX_MESSAGE_SIZE
from fabric.error import CompressionError, HandshakeFailed, InvalidHeader, MessageTooLarge
from fabric.headers import parse_items
from fabric_ext.deflate import Codec, CorruptData, DeflateCodec, OutputLimit, ZstdCodec

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Agreement", "Compressor", "Decompressor", "accept_answer", "answer_offers", "make_offer"]

HEADER = "Sec-WebSocket-Extensions"
DEFLATE = "permessage-deflate"
ZSTD = "permessage-zstd"

MAX_BITS = 15
_BITS = {
    DEFLATE: {str(bits): bits for bits in range(8, 16)},
    ZSTD: {str(bits): bits for bits in range(10, 16)},
}

Side = Literal["client", "server"]
Parameters = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Agreement:
    """What both sides of a connection agreed on: one extension and its parameters.

    Attributes:
        extension: "permessage-deflate" or "permessage-zstd".
        parameters: as they stand in the answer, in its order.
        server_window_bits, client_window_bits: the window of what that side sends is 2 ** bits bytes.
        server_takeover, client_takeover: whether what that side sends may refer to its earlier messages.
        dictionary: whether both use the configured zstd dictionary.
    """

    extension: str
    parameters: tuple[tuple[str, str | None], ...] = ()
    server_window_bits: int = MAX_BITS
    client_window_bits: int = MAX_BITS
    server_takeover: bool = True
    client_takeover: bool = True
    dictionary: bool = False

    def __str__(self) -> str:
        """The header value: a server's answer."""
        return _format(self.extension, self.parameters)

    def codec(self, config: CompressionConfig, side: Side) -> Codec:
        """The codec for one connection.

        Args:
            config: the configuration that the agreement was made with.
            side: which end of the connection this is.
        """
        bits = self.client_window_bits, self.server_window_bits
        takeover = self.client_takeover, self.server_takeover
        own = 0 if side == "client" else 1
        if self.extension == ZSTD:
            return ZstdCodec(
                own_window_bits=bits[own],
                peer_window_bits=bits[1 - own],
                own_takeover=takeover[own],
                peer_takeover=takeover[1 - own],
                level=config.level,
                dictionary=config.zstd_dictionary if self.dictionary else None,
                threshold=config.threshold,
            )
        return DeflateCodec(
            own_window_bits=bits[own],
            peer_window_bits=bits[1 - own],
            own_takeover=takeover[own],
            peer_takeover=takeover[1 - own],
            # A level for zstd means nothing to deflate, the fallback.
            level=config.level if config.algorithm == "deflate" else None,
            mem_level=config.mem_level,
            threshold=config.threshold,
        )


# Negotiation


def make_offer(config: CompressionConfig) -> str | None:
    """The client's `Sec-WebSocket-Extensions`; None if it wants no compression.

    An offer with `server_max_window_bits` is followed by the same without it, for servers that cannot limit
    their window and so have to decline the first (RFC 7692 §7.1.2.1).
    """
    if not config.enabled:
        return None
    return ", ".join(_format(extension, parameters.items()) for extension, parameters in _offers(config))


def answer_offers(lines: Iterable[str], config: CompressionConfig) -> Agreement | None:
    """Choose, as a server, the first offer that can be accepted; None declines them all.

    Args:
        lines: the request's `Sec-WebSocket-Extensions` headers.
        config: what this server wants.

    Raises:
        InvalidHeader: a header does not follow the grammar (RFC 6455 §9.1), so the request is to be refused.
            An unknown extension is ignored; a parameter that is unknown, repeated or out of range declines
            its offer, and no more.
    """
    items = parse_items(HEADER, lines)
    if config.enabled:
        for name, parameters in items:
            if name == DEFLATE or (name == ZSTD and config.algorithm == "zstd"):
                try:
                    return _accept_offer(name, _checked(name, parameters, offer=True), config)
                except ValueError:
                    continue
    return None


def accept_answer(lines: Iterable[str], config: CompressionConfig) -> Agreement | None:
    """Check, as a client, a server's answer to `make_offer(config)`; None if it accepted nothing.

    Raises:
        HandshakeFailed: the answer is malformed, accepts what was not offered or more than one extension, or
            has a parameter that is unknown, repeated, out of range, missing or in conflict with the offer.
    """
    try:
        items = parse_items(HEADER, lines)
        if not items:
            return None
        if len(items) > 1:
            # Two compressions would both claim RSV1 (RFC 7692 §5).
            raise ValueError("more than one extension accepted")
        name, pairs = items[0]
        offers = [parameters for extension, parameters in _offers(config) if extension == name]
        if not config.enabled or not offers:
            raise ValueError(f"extension {name!r} was not offered")
        parameters = _checked(name, pairs, offer=False)
        # Which of several offers was accepted shows only in what the answer says.
        for last, offer in enumerate(offers, 1 - len(offers)):
            try:
                return _confirm(name, pairs, offer, parameters, config)
            except ValueError:
                if not last:
                    raise
    except InvalidHeader as error:
        raise HandshakeFailed(str(error)) from error
    except ValueError as error:
        raise HandshakeFailed(f"invalid {HEADER} answer: {error}") from None
    return None


def _offers(config: CompressionConfig) -> list[tuple[str, Parameters]]:
    common: dict[str, str | None] = {}
    if config.server_no_context_takeover:
        common["server_no_context_takeover"] = None
    if config.client_no_context_takeover:
        common["client_no_context_takeover"] = None
    offers: list[tuple[str, Parameters]] = []
    if config.algorithm == "zstd":
        parameters = common | {
            "server_max_window_bits": str(max(10, config.server_max_window_bits)),
            "client_max_window_bits": str(max(10, config.client_max_window_bits)),
        }
        if config.zstd_dictionary is not None:
            parameters["dictionary"] = _dictionary_id(config.zstd_dictionary)
        offers.append((ZSTD, parameters))
    # Without a value: the server may limit our window. We may use a smaller one without saying so, and some servers
    # answer with more than a value says.
    general = common | {"client_max_window_bits": None}
    if config.server_max_window_bits < MAX_BITS:
        offers.append((DEFLATE, common | {"server_max_window_bits": str(config.server_max_window_bits)} | general))
    offers.append((DEFLATE, general))
    return offers


def _accept_offer(extension: str, offered: Parameters, config: CompressionConfig) -> Agreement:
    """The answer to one valid offer (RFC 7692 §7.1). All can be accepted: any window, 8 bits included."""
    answer: dict[str, str | None] = {}
    for side, own in (
        ("server", config.server_no_context_takeover),
        ("client", config.client_no_context_takeover),
    ):
        # §7.1.1.2: the client's is a hint. Repeating it makes it a promise, and its window need not be kept.
        if own or f"{side}_no_context_takeover" in offered:
            answer[f"{side}_no_context_takeover"] = None
    # §7.1.2.1: it may stand in the answer even where it does not in the offer.
    low = min(_BITS[extension].values())
    bits = min(_bits(extension, offered, "server"), max(low, config.server_max_window_bits))
    if bits < MAX_BITS or "server_max_window_bits" in offered:
        answer["server_max_window_bits"] = str(bits)
    # §7.1.2.2: this one may not.
    if "client_max_window_bits" in offered:
        bits = min(_bits(extension, offered, "client"), max(low, config.client_max_window_bits))
        if bits < MAX_BITS:
            answer["client_max_window_bits"] = str(bits)
    own_dictionary = config.zstd_dictionary
    if own_dictionary is not None and offered.get("dictionary") == _dictionary_id(own_dictionary):
        answer["dictionary"] = offered["dictionary"]
    return _agreement(extension, tuple(answer.items()), answer)


def _confirm(
    extension: str,
    pairs: tuple[tuple[str, str | None], ...],
    offer: Parameters,
    answer: Parameters,
    config: CompressionConfig,
) -> Agreement:
    """What the answer to one offer means (RFC 7692 §7.1); ValueError if it is no answer to that offer."""
    if "server_no_context_takeover" in offer and "server_no_context_takeover" not in answer:
        raise ValueError("server_no_context_takeover was required")
    required = offer.get("server_max_window_bits")
    if required is not None and "server_max_window_bits" not in answer:
        raise ValueError(f"server_max_window_bits of at most {required} was required")
    for name in ("server_max_window_bits", "client_max_window_bits"):
        given, most = answer.get(name), offer.get(name)
        if given is not None and most is not None and int(given) > int(most):
            raise ValueError(f"{name} of at most {most} was offered, not {given}")
    for name in ("client_max_window_bits", "dictionary"):
        if name in answer and name not in offer:
            raise ValueError(f"{name} was not offered")
    if "dictionary" in answer and answer["dictionary"] != offer["dictionary"]:
        raise ValueError("another dictionary was offered")
    # §7.1.1.2, §7.1.2.2: our own window and takeover are at most what we want, whatever more the answer allows.
    wanted = max(min(_BITS[extension].values()), config.client_max_window_bits)
    own: dict[str, str | None] = {"client_max_window_bits": str(min(_bits(extension, answer, "client"), wanted))}
    if "client_no_context_takeover" in offer:
        own["client_no_context_takeover"] = None
    return _agreement(extension, pairs, {**answer, **own})


def _agreement(extension: str, pairs: tuple[tuple[str, str | None], ...], terms: Parameters) -> Agreement:
    return Agreement(
        extension,
        pairs,
        server_window_bits=_bits(extension, terms, "server"),
        client_window_bits=_bits(extension, terms, "client"),
        server_takeover="server_no_context_takeover" not in terms,
        client_takeover="client_no_context_takeover" not in terms,
        dictionary="dictionary" in terms,
    )


def _checked(extension: str, pairs: Iterable[tuple[str, str | None]], *, offer: bool) -> Parameters:
    """The parameters of an offer or answer; ValueError if one may not be accepted (RFC 7692 §7.1)."""
    parameters: dict[str, str | None] = {}
    for name, value in pairs:
        if name in parameters:
            raise ValueError(f"parameter {name!r} is repeated")
        match name:
            case "server_no_context_takeover" | "client_no_context_takeover":
                valid = value is None
            case "server_max_window_bits":
                valid = value in _BITS[extension]
            case "client_max_window_bits":
                valid = value in _BITS[extension] or (offer and value is None)
            case "dictionary" if extension == ZSTD:
                valid = value is not None
            case _:
                raise ValueError(f"parameter {name[:40]!r} is unknown")
        if not valid:
            raise ValueError(f"parameter {name!r} cannot be {value and value[:40]!r}")
        parameters[name] = value
    return parameters


def _bits(extension: str, parameters: Parameters, side: Side) -> int:
    value = parameters.get(f"{side}_max_window_bits")
    return MAX_BITS if value is None else _BITS[extension][value]


def _dictionary_id(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"


def _format(extension: str, parameters: Iterable[tuple[str, str | None]]) -> str:
    return "; ".join([extension, *(name if value is None else f"{name}={value}" for name, value in parameters)])


# Alone


class _Statistics:
    __slots__ = ("_codec",)

    _codec: Codec

    def _counts(self) -> tuple[int, int]:
        """Bytes plain, bytes compressed."""
        raise NotImplementedError

    @property
    def ratio(self) -> float:
        """Compressed size divided by plain size, so less is better; 1.0 before the first message."""
        plain, compressed = self._counts()
        return compressed / plain if plain else 1.0

    @property
    def saved(self) -> float:
        """The part of the bytes that compression saved, as in 0.8 for 80 %; negative where it cost some."""
        return 1.0 - self.ratio


class Compressor(_Statistics):
    """Compresses messages one by one, as a connection does. Messages refer to those before them.

    Args:
        config: algorithm, level, window and memory; the sender's half of it counts.
        sender: which side of a connection this stands for: its window bits and context takeover are used.
    """

    __slots__ = ()

    def __init__(self, config: CompressionConfig | None = None, *, sender: Side = "server") -> None:
        self._codec = _codec_alone(config or CompressionConfig(), sender, sends=True)

    def compress(self, data: str | Buffer) -> bytes:
        """One whole message; a string is compressed as UTF-8.

        The results must reach a `Decompressor` of the same settings, all of them and in order.
        """
        return self._codec.encode(data.encode() if isinstance(data, str) else data)

    def release(self) -> None:
        """Give back the window's memory; the next message refers to nothing before it."""
        self._codec.release_idle()

    def _counts(self) -> tuple[int, int]:
        return self._codec.plain_out, self._codec.wire_out

    @property
    def bytes_in(self) -> int:
        """Bytes of all messages."""
        return self._codec.plain_out

    @property
    def bytes_out(self) -> int:
        """Bytes that they became."""
        return self._codec.wire_out


class Decompressor(_Statistics):
    """Decompresses what a `Compressor` of the same settings made, message by message.

    Args:
        config: as the sender's; window bits may be larger than the sender's, never smaller.
        sender: the sender's side.
        max_message_size: most bytes of a decompressed message; a bomb costs no more memory than this.
    """

    __slots__ = ("max_message_size",)

    def __init__(
        self,
        config: CompressionConfig | None = None,
        *,
        sender: Side = "server",
        max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE,
    ) -> None:
        if max_message_size < 0:
            raise ValueError(f"max_message_size must be 0 or more, not {max_message_size}")
        self._codec = _codec_alone(config or CompressionConfig(), sender, sends=False)
        self.max_message_size = max_message_size

    def decompress(self, data: Buffer) -> bytes:
        """One whole message.

        Raises:
            CompressionError: the data is corrupt; so is everything after it.
            MessageTooLarge: the message is larger than `max_message_size`. Later ones raise CompressionError.
        """
        try:
            return self._codec.decode(data, limit=self.max_message_size)
        except OutputLimit as error:
            raise MessageTooLarge(error.size, error.limit, str(error)) from None
        except CorruptData as error:
            raise CompressionError(str(error)) from None

    def _counts(self) -> tuple[int, int]:
        return self._codec.plain_in, self._codec.wire_in

    @property
    def bytes_in(self) -> int:
        """Bytes of all compressed messages."""
        return self._codec.wire_in

    @property
    def bytes_out(self) -> int:
        """Bytes that they became."""
        return self._codec.plain_in


def _codec_alone(config: CompressionConfig, sender: Side, *, sends: bool) -> Codec:
    low = 10 if config.algorithm == "zstd" else 8
    agreement = Agreement(
        ZSTD if config.algorithm == "zstd" else DEFLATE,
        server_window_bits=max(low, config.server_max_window_bits),
        client_window_bits=max(low, config.client_max_window_bits),
        server_takeover=not config.server_no_context_takeover,
        client_takeover=not config.client_no_context_takeover,
        dictionary=config.zstd_dictionary is not None,
    )
    other: Side = "client" if sender == "server" else "server"
    return agreement.codec(config, sender if sends else other)
