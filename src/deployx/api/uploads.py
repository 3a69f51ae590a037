"""Uploads: the one file of a multipart form, taken from the wire in pieces and written as it comes, never held whole.

Names are data: `filename` is kept as it was sent, separators included (RFC 7578 as browsers and curl write it).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers

from deployx.catalog.blobs import PIECE_BYTES, Incoming
from deployx.errors import BadRequest, Invalid, Problem, TooLarge, WrongContentType

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

PART = "file"
LONGEST_NAME = 255
AROUND_BYTES = 64 * 1024
"""What a form may have besides the content: boundaries and headers."""
_PARAMETER = re.compile(r';\s*([A-Za-z0-9_*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;"\s]*))', re.DOTALL)
_ESCAPED_BY_BROWSERS = {"%22": '"', "%0D": "\r", "%0A": "\n"}


async def received(receive: Receive, headers: Headers, incoming: Incoming, *, most: int) -> str:
    """Write the form's file into `incoming`; answers its name.

    Raises WrongContentType, TooLarge for more than `most` bytes, Invalid for another form, BadRequest if it breaks off.
    """
    boundary = _boundary(headers)
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most + AROUND_BYTES:
        raise _too_large(most)
    form = _Form(boundary, incoming, most)
    gathered, size, is_last = bytearray(), 0, False
    while not is_last:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("The upload broke off: nothing was stored.")
        is_last = not message.get("more_body", False)
        gathered += message.get("body", b"")
        if is_last or len(gathered) >= PIECE_BYTES:
            size += len(gathered)
            if size > most + AROUND_BYTES:
                raise _too_large(most)
            piece, gathered = bytes(gathered), bytearray()
            await asyncio.to_thread(form.feed, piece)
    return form.name()


def _boundary(headers: Headers) -> bytes:
    kind, options = parse_options_header(headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise WrongContentType(f"Content-Type {kind.decode('latin-1') or 'none'!r}: send multipart/form-data.")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise _invalid("The Content-Type names no boundary: let the program that makes the form set it.")
    return boundary


class _Form:
    """Reads the form; everything but one part named `file` with a filename is refused as soon as it is seen."""

    def __init__(self, boundary: bytes, incoming: Incoming, most: int) -> None:
        self._incoming = incoming
        self._most = most
        self._filename: str | None = None
        self._header = ["", ""]
        self._disposition: str | None = None
        self._ended = False
        self._parser = _parser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._content,
                "on_end": self._ends,
            },
        )

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _invalid(f"This is no multipart form: {error}.") from None

    def name(self) -> str:
        """The file's name, once all was fed."""
        if self._filename is None:
            raise _invalid(f"The form has no part named {PART!r}: send the file in one.")
        if not self._ended:
            raise _invalid("The form breaks off: its closing boundary is missing.")
        return self._filename

    def _part_begins(self) -> None:
        if self._filename is not None:
            raise _invalid(f"The form has more than one part: send one file, named {PART!r}, and nothing else.")
        self._disposition = None

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end].decode("latin-1")

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        # Bytes one by one: a character may be split between two pieces of the body.
        self._header[1] += data[start:end].decode("latin-1")

    def _header_ends(self) -> None:
        if self._header[0].lower() == "content-disposition":
            self._disposition = self._header[1]
        self._header = ["", ""]

    def _headers_end(self) -> None:
        self._filename = _filename(self._disposition or "")

    def _content(self, data: bytes, start: int, end: int) -> None:
        if self._incoming.size_bytes + end - start > self._most:
            raise _too_large(self._most)
        self._incoming.write(data[start:end])

    def _ends(self) -> None:
        self._ended = True


def _parser(boundary: bytes, callbacks: Any) -> MultipartParser:
    try:
        return MultipartParser(boundary, callbacks)
    except FormParserError as error:
        raise _invalid(f"This is no multipart form: {error}.") from None


def _filename(disposition: str) -> str:
    """The name in a part's Content-Disposition. Raises Invalid for another part, and for a name that cannot be kept."""
    found = {name.lower(): _unescaped(quoted) or plain for name, quoted, plain in _PARAMETER.findall(disposition)}
    if found.get("name") != PART:
        raise _invalid(
            f"The form has a part named {found.get('name', '')[:40]!r}: send the file in one named {PART!r}."
        )
    if not found.get("filename"):
        raise _invalid("The part has no filename: send it as a file.")
    try:
        name = found["filename"].encode("latin-1").decode()
    except UnicodeDecodeError:
        raise _invalid("The filename is not UTF-8.") from None
    for written, meant in _ESCAPED_BY_BROWSERS.items():
        name = name.replace(written, meant)
    if len(name) > LONGEST_NAME:
        raise _invalid(f"The filename has {len(name)} characters, more than {LONGEST_NAME}: shorten it.")
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in name):
        raise _invalid("The filename holds control characters: rename the file.")
    return name


def _unescaped(quoted: str) -> str:
    """A quoted string's value; a backslash before anything else is one of the name's own (browsers escape none)."""
    return re.sub(r'\\(["\\])', r"\1", quoted)


def _invalid(why: str) -> Invalid:
    return Invalid([Problem(("body", PART), why)])


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"The file has more than {most} bytes (MAX_UPLOAD_BYTES): split it, or have the limit raised.")
