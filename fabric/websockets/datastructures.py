"""HTTP headers that may be there more than once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Protocol

from fabric.websockets.exceptions import InvalidHeaderValue

__all__ = ["Headers", "HeadersLike", "MultipleValuesError"]

# RFC 9110 §5.5, as text: tabs, printable ASCII, and the other half of ISO-8859-1.
_is_value = re.compile(r"[\x09\x20-\x7e\x80-\xff]*").fullmatch


class MultipleValuesError(LookupError):
    """A header has several values where one was asked for."""

    def __str__(self) -> str:
        return repr(self.args[0]) if len(self.args) == 1 else super().__str__()


class Headers(MutableMapping[str, str]):
    """Header lines, in order. Names are compared without case, and iterated in lower case.

    `headers[name]` is the one value of a header; `headers[name] = value` adds a line; `del headers[name]` removes all
    lines of that name. `get_all` and `raw_items` give everything. Text is ISO-8859-1 on the wire.

    Raises:
        KeyError: no such header.
        MultipleValuesError: it has several values.
        InvalidHeaderValue: a value with a control character.
    """

    __slots__ = ("_dict", "_list")

    def __init__(self, *args: HeadersLike, **kwargs: str) -> None:
        self._dict: dict[str, list[str]] = {}
        self._list: list[tuple[str, str]] = []
        self.update(*args, **kwargs)

    def __str__(self) -> str:
        return "".join(f"{name}: {value}\r\n" for name, value in self._list) + "\r\n"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._list!r})"

    def copy(self) -> Headers:
        """The same lines in another object."""
        other = type(self)()
        for name, value in self._list:
            other.set_insecure(name, value)
        return other

    def serialize(self) -> bytes:
        """All lines and the empty one, as they go over the wire."""
        return str(self).encode("iso-8859-1")

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower() in self._dict

    def __iter__(self) -> Iterator[str]:
        return iter(self._dict)

    def __len__(self) -> int:
        return len(self._dict)

    def __getitem__(self, key: str) -> str:
        values = self._dict[key.lower()]
        if len(values) > 1:
            raise MultipleValuesError(key)
        return values[0]

    def __setitem__(self, key: str, value: str) -> None:
        if not _is_value(str(value)):
            raise InvalidHeaderValue(key, value)
        self.set_insecure(key, value)

    def __delitem__(self, key: str) -> None:
        folded = key.lower()
        del self._dict[folded]
        self._list = [line for line in self._list if line[0].lower() != folded]

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Headers):
            return NotImplemented
        return self._dict == other._dict

    def clear(self) -> None:
        """Remove all lines."""
        self._dict = {}
        self._list = []

    def update(self, *args: Any, **kwargs: str) -> None:
        """Add lines: from a `Headers`, a mapping, or pairs of name and value."""
        super().update(*(arg.raw_items() if isinstance(arg, Headers) else arg for arg in args), **kwargs)

    def get_all(self, key: str) -> list[str]:
        """The values of all lines of that name, maybe none."""
        return self._dict.get(key.lower(), [])

    def raw_items(self) -> Iterator[tuple[str, str]]:
        """All lines as pairs of name and value."""
        return iter(self._list)

    def set_insecure(self, key: str, value: str) -> None:
        """Add a line whose value has been checked."""
        self._dict.setdefault(key.lower(), []).append(value)
        self._list.append((key, value))


class SupportsKeysAndGetItem(Protocol):
    """What `dict(x)` takes as a mapping."""

    def keys(self) -> Iterable[str]: ...

    def __getitem__(self, key: str) -> str: ...


HeadersLike = Headers | Mapping[str, str] | Iterable[tuple[str, str]] | SupportsKeysAndGetItem
