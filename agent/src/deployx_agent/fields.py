"""Reads the fields of JSON objects with their types; what is wrong is named with its place and value. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

LARGEST_NUMBER = 2**63 - 1


class ProtocolError(ValueError):
    """A message that breaks the protocol; the sentence names the field and its value."""


class Fields:
    """The fields of one object, read with their types; a wrong one raises ProtocolError that names it."""

    def __init__(self, values: Mapping[str, Any], what: str) -> None:
        self._values = values
        self._what = what

    def value(self, name: str, kind: type) -> Any:
        found = self._values.get(name)
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise ProtocolError(f"{self._what}.{name} is {short(found)}, not {kind.__name__}")
        return found

    def text(self, name: str) -> str:
        found: str = self.value(name, str)
        return found

    def number(self, name: str, *, at_least: int = 0) -> int:
        found: int = self.value(name, int)
        if not at_least <= found <= LARGEST_NUMBER:
            raise ProtocolError(f"{self._what}.{name} is {short(found)}, not between {at_least} and {LARGEST_NUMBER}")
        return found

    def optional_text(self, name: str) -> str | None:
        return None if self._values.get(name) is None else self.text(name)

    def instant(self, name: str) -> datetime:
        return parse_instant(self.text(name))

    def strings(self, name: str) -> Mapping[str, str]:
        found: dict[str, str] = self.value(name, dict)
        for key, value in found.items():
            if not isinstance(value, str):
                raise ProtocolError(f"{self._what}.{name}.{key} is {short(value)}, not a string")
        return found

    def truth(self, name: str) -> bool:
        found: bool = self.value(name, bool)
        return found

    def numbers(self, name: str) -> tuple[int, ...]:
        found = self.value(name, list)
        if not all(type(one) is int for one in found):
            raise ProtocolError(f"{self._what}.{name} is {short(found)}, not a list of numbers")
        return tuple(found)

    def one_of(self, name: str, allowed: Sequence[str]) -> str:
        found = self.text(name)
        if found not in allowed:
            raise ProtocolError(f"{self._what}.{name} is {short(found)}, not one of {', '.join(allowed)}")
        return found

    def objects(self, name: str) -> list[Fields]:
        """The objects in a list."""
        found = self.value(name, list)
        for one in found:
            if not isinstance(one, dict):
                raise ProtocolError(f"{self._what}.{name} holds {short(one)}, not an object")
        return [Fields(one, f"{self._what}.{name}") for one in found]

    def object(self, name: str) -> Fields:
        return Fields(self.value(name, dict), f"{self._what}.{name}")

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None


def parse_instant(text: str) -> datetime:
    """An RFC 3339 instant with an offset. Raises ProtocolError."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ProtocolError(f"{text!r} has no offset")
        return moment.astimezone(UTC)
    except ProtocolError:
        raise
    except (ValueError, OverflowError):
        raise ProtocolError(f"{text[:40]!r} is no instant") from None


def read_object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"{what} is {short(value)}, not a JSON object")
    return value


def short(value: object) -> str:
    words = repr(value)
    return words if len(words) <= 80 else words[:80] + "…"
