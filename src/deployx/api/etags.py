"""`ETag` and `If-Match`: a change that was made on an older state is refused where the caller asks for that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Header, Response

from deployx.errors import Stale

IfMatch = Annotated[str | None, Header(alias="If-Match")]


def etag(version: int) -> str:
    return f'"{version}"'


def put(response: Response, version: int) -> None:
    response.headers["ETag"] = etag(version)


def require(if_match: str | None, version: int) -> None:
    """Raise Stale unless the header, where given, names this version."""
    if if_match is None or if_match.strip() == "*":
        return
    if etag(version) not in {one.strip().removeprefix("W/") for one in if_match.split(",")}:
        raise Stale(f"The object is at version {version}, not {if_match}: read it again and repeat the change on it.")


def put_for(response: Response, shown: Mapping[str, Any]) -> None:
    """The ETag of an object that has no version number: a digest of what is shown."""
    response.headers["ETag"] = _digest(shown)


def require_for(if_match: str | None, shown: Mapping[str, Any]) -> None:
    if if_match is not None and if_match.strip() != "*" and _digest(shown) not in if_match:
        raise Stale(f"The object is {_digest(shown)} now, not {if_match}: read it again and repeat the change on it.")


def _digest(shown: Mapping[str, Any]) -> str:
    return f'"{hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]}"'
