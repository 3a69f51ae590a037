"""Turns the bytes of two pipes into chunks of text: in the order read, limited, no character torn apart."""

from __future__ import annotations

import codecs
import locale
import sys
from collections.abc import Callable
from dataclasses import dataclass

from deployx_agent.protocol import CHUNK_BYTES

Emit = Callable[[int, str, str], None]
"""Takes (step, stream, text)."""


@dataclass(slots=True)
class _Budget:
    """What is left of a stream's head, and its tail held back until the end."""

    head_left: int
    tail_limit: int
    tail: bytearray
    dropped: int = 0


class OutputReader:
    """Of each stream of a run: the first three quarters of the limit at once, the last quarter at the end."""

    def __init__(self, limit_bytes: int, emit: Emit) -> None:
        self._emit = emit
        self._encoding = _console_encoding()
        head = limit_bytes * 3 // 4
        self._budgets = {name: _Budget(head, limit_bytes - head, bytearray()) for name in ("stdout", "stderr")}
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}
        self.truncated = False
        self.replaced_bytes = False

    def feed(self, step: int, stream: str, block: bytes) -> None:
        budget = self._budgets[stream]
        head, rest = block[: budget.head_left], block[budget.head_left :]
        budget.head_left -= len(head)
        self._pieces(step, stream, head)
        if rest:
            budget.tail += rest
            over = len(budget.tail) - budget.tail_limit
            if over > 0:
                del budget.tail[:over]
                budget.dropped += over

    def end_step(self, step: int) -> None:
        """Give out what a character at the end of the step still held back."""
        for stream in ("stdout", "stderr"):
            self._text(step, stream, b"", final=True)

    def end_run(self, step: int) -> None:
        """Give out the tails, with a marker where something between was left out."""
        for stream, budget in self._budgets.items():
            if budget.dropped:
                self.truncated = True
                self._emit(step, stream, f"\n[… {budget.dropped} bytes of {stream} left out …]\n")
            tail, budget.tail = bytes(budget.tail), bytearray()
            self._pieces(step, stream, tail)
            self._text(step, stream, b"", final=True)

    def _pieces(self, step: int, stream: str, block: bytes) -> None:
        """Give out a block in chunks that fit into a frame, whatever a pipe delivered at once."""
        for start in range(0, len(block), CHUNK_BYTES):
            self._text(step, stream, block[start : start + CHUNK_BYTES])

    def _text(self, step: int, stream: str, block: bytes, *, final: bool = False) -> None:
        decoder = self._decoders.get(stream)
        if decoder is None:
            decoder = self._decoders[stream] = codecs.getincrementaldecoder(self._encoding)(errors="replace")
        text = decoder.decode(block, final)
        if "\ufffd" in text and "\ufffd".encode() not in block:
            self.replaced_bytes = True
        if final:
            decoder.reset()
        if text:
            self._emit(step, stream, text)


def _console_encoding() -> str:
    """The encoding of a console's bytes: UTF-8 on POSIX, the OEM code page on Windows."""
    if sys.platform == "win32":
        return "oem"
    name = locale.getpreferredencoding(False)
    return "utf-8" if name.upper() in ("ANSI_X3.4-1968", "US-ASCII", "ASCII") else name
