"""A stored content as an answer: whole, or the one range that was asked for (RFC 9110, section 14); streamed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import BinaryIO
from urllib.parse import quote

from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from deployx.catalog.blobs import Blob, BlobStore, pieces
from deployx.errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes=\s*(\d{0,19})-(\d{0,19})\s*", re.ASCII | re.IGNORECASE)


async def answer(request: Request, store: BlobStore, blob: Blob, filename: str | None) -> Response:
    """The content, or a part of it. Raises NotFound where it is gone, RangeNotSatisfiable beyond its end."""
    file = await asyncio.to_thread(store.open, blob.sha256)
    try:
        part = asked_range(request.headers, blob)
    except RangeNotSatisfiable:
        file.close()
        raise
    start, length = part if part is not None else (0, blob.size_bytes)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(length),
        "ETag": f'"{blob.sha256}"',
        "X-Content-Type-Options": "nosniff",
        "Content-Type": "application/octet-stream",
    }
    if filename is not None:
        headers["Content-Disposition"] = disposition(filename)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{blob.size_bytes}"
    status = 200 if part is None else 206
    if request.scope["state"].get("without_body"):
        file.close()
        return Response(None, status, headers)
    return _Content(file, start, length, status, headers)


def asked_range(headers: Mapping[str, str], blob: Blob) -> tuple[int, int] | None:
    """Start and length of the range asked for; None for the whole, also where the header says nothing we know. Pure."""
    found = _RANGE.fullmatch(headers.get("range", ""))
    if found is None or headers.get("if-range", f'"{blob.sha256}"').strip() != f'"{blob.sha256}"':
        return None
    first, last = found.groups()
    if not first and not last:
        return None
    if not first:
        length = min(int(last), blob.size_bytes)
        if length == 0:
            raise RangeNotSatisfiable(blob.size_bytes)
        return blob.size_bytes - length, length
    if last and int(last) < int(first):
        return None
    if int(first) >= blob.size_bytes:
        raise RangeNotSatisfiable(blob.size_bytes)
    end = min(int(last), blob.size_bytes - 1) if last else blob.size_bytes - 1
    return int(first), end - int(first) + 1


def disposition(filename: str) -> str:
    """`attachment` with a plain name for old programs and the true one (RFC 6266, RFC 8187)."""
    plain = re.sub(r'[^ -~]|["\\%]', "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


class _Content(StreamingResponse):
    """Closes the file whatever becomes of the connection."""

    def __init__(self, file: BinaryIO, start: int, length: int, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(pieces(file, start, length), status, headers)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()
