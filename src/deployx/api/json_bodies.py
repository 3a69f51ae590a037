"""JSON as requests may carry it: strict, bounded in depth, and nothing that could not be stored."""

from __future__ import annotations

import json
import re
from typing import Any

from deployx.errors import BadRequest

DEEPEST = 32

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def parsed(body: bytes) -> Any:
    """The value. Raises BadRequest for what is no JSON, NaN included, and for more than 32 levels."""
    if _depth(body) > DEEPEST:
        raise BadRequest(f"The JSON is nested deeper than {DEEPEST} levels.")
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        if b"\\ud" in body.lower():  # an escape for half a character, alone, is no text that could be stored
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is not JSON: {error}.") from None
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _depth(body: bytes) -> int:
    """How deep brackets nest outside of strings, without building the value."""
    deepest = level = 0
    for character in re.findall(rb"[\[\]{}]", _STRINGS.sub(b"", body)):
        level += 1 if character in b"[{" else -1
        deepest = max(deepest, level)
    return deepest
