"""Turns the bytes of two pipes into chunks of text: in the order read, limited, no character torn apart."""

from __future__ import annotations

import codecs
import locale
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from deployx_agent.protocol import CHUNK_BYTES

Emit = Callable[[int, str, str], None]
"""Takes (step, stream, text)."""


@dataclass(slots=True)
class _Stream:
    """One stream of a run: what is left of its head, and its tail (step, bytes) held back until the end."""

    name: str
    head_left: int
    tail_limit: int
    decoder: codecs.IncrementalDecoder
    tail: deque[tuple[int, bytes]] = field(default_factory=deque)
    tail_bytes: int = 0
    dropped: int = 0

    def keep(self, step: int, block: bytes) -> None:
        """Add to the tail, and drop as much of its beginning as is too much."""
        self.tail.append((step, block))
        self.tail_bytes += len(block)
        while (over := self.tail_bytes - self.tail_limit) > 0:
            of, first = self.tail.popleft()
            if len(first) > over:
                self.tail.appendleft((of, first[over:]))
            lost = min(len(first), over)
            self.tail_bytes -= lost
            self.dropped += lost


class OutputReader:
    """Of each stream of a run: the first three quarters of the limit at once, the last quarter at the end."""

    def __init__(self, limit_bytes: int, emit: Emit, *, encoding: str | None = None) -> None:
        self._emit = emit
        self._encoding = encoding or _console_encoding()
        decoder = codecs.getincrementaldecoder(self._encoding)
        head = limit_bytes * 3 // 4
        self._streams = {
            name: _Stream(name, head, limit_bytes - head, decoder(errors="replace")) for name in ("stdout", "stderr")
        }
        self.truncated = False
        self.replaced_bytes = False

    def feed(self, step: int, name: str, block: bytes) -> None:
        stream = self._streams[name]
        head, rest = block[: stream.head_left], block[stream.head_left :]
        stream.head_left -= len(head)
        self._give(step, stream, head)
        if rest:
            stream.keep(step, rest)

    def end_step(self, step: int) -> None:
        """Give out what a torn character at the end of the step still held back; none where a tail goes on with it."""
        for stream in self._streams.values():
            if not stream.tail and not stream.dropped:
                self._finish(step, stream)

    def end_run(self, step: int) -> None:
        """Give out the tails, with a marker where something before them was left out."""
        for stream in self._streams.values():
            if stream.dropped:
                self.truncated = True
                # The cut may run through a character on either side of it: no fault of the command's output.
                stream.decoder.reset()
                of = stream.tail[0][0] if stream.tail else step
                self._emit(of, stream.name, f"\n[… {stream.dropped} bytes of {stream.name} left out …]\n")
                if codecs.lookup(self._encoding).name == "utf-8":
                    _drop_torn_beginning(stream.tail)
            of = step
            while stream.tail:
                of, block = stream.tail.popleft()
                self._give(of, stream, block)
            self._finish(of, stream)

    def _give(self, step: int, stream: _Stream, block: bytes) -> None:
        """Give out a block in chunks that fit into a frame, whatever a pipe delivered at once."""
        for start in range(0, len(block), CHUNK_BYTES):
            piece = block[start : start + CHUNK_BYTES]
            self._say(step, stream, stream.decoder.decode(piece), piece)

    def _finish(self, step: int, stream: _Stream) -> None:
        self._say(step, stream, stream.decoder.decode(b"", True), b"")
        stream.decoder.reset()

    def _say(self, step: int, stream: _Stream, text: str, read: bytes) -> None:
        if "\ufffd" in text and "\ufffd".encode() not in read:
            self.replaced_bytes = True
        for piece in _pieces(text) if text else ():
            self._emit(step, stream.name, piece)


def _pieces(text: str) -> Iterator[str]:
    """The text in chunks of at most the protocol's size; replaced bytes take three times the room they had."""
    if len(text.encode()) <= CHUNK_BYTES:
        yield text
        return
    for start in range(0, len(text), CHUNK_BYTES // 4):
        yield text[start : start + CHUNK_BYTES // 4]


def _drop_torn_beginning(tail: deque[tuple[int, bytes]]) -> None:
    """Drop up to three bytes that only continue a character of UTF-8."""
    torn = 3
    while torn and tail:
        step, block = tail.popleft()
        kept = block
        while torn and kept and kept[0] & 0xC0 == 0x80:
            kept, torn = kept[1:], torn - 1
        if kept:
            tail.appendleft((step, kept))
            return


def _console_encoding() -> str:
    """The encoding of a console's bytes: UTF-8 on POSIX, the OEM code page on Windows."""
    if sys.platform == "win32":
        return "oem"
    name = locale.getpreferredencoding(False)
    return "utf-8" if name.upper() in ("ANSI_X3.4-1968", "US-ASCII", "ASCII") else name
