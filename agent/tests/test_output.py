"""Bytes become text: nothing torn, nothing lost below the limit, and what is left out is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployx_agent.output import OutputReader
from deployx_agent.protocol import CHUNK_BYTES


class Heard:
    """A reader of UTF-8 with what it gave out."""

    def __init__(self, limit_bytes: int) -> None:
        self.chunks: list[tuple[int, str, str]] = []
        self.reader = OutputReader(limit_bytes, lambda *chunk: self.chunks.append(chunk), encoding="utf-8")

    def text(self, stream: str = "stdout") -> str:
        return "".join(text for _, one, text in self.chunks if one == stream)


@given(st.text(), st.lists(st.integers(1, 5), min_size=1), st.integers(0, 3))
def test_text_below_the_limit_comes_whole_however_it_is_cut(text: str, sizes: list[int], room: int) -> None:
    encoded = text.encode()
    heard = Heard(len(encoded) + room)
    at = 0
    for number in range(len(encoded)):
        size = sizes[number % len(sizes)]
        heard.reader.feed(0, "stdout", encoded[at : at + size])
        at += size
    heard.reader.end_step(0)
    heard.reader.end_run(0)
    assert heard.text() == text
    assert not heard.reader.truncated


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["stdout", "stderr"]), st.text())), st.integers(0, 60))
def test_whatever_the_limit_cuts_text_stays_text_and_each_stream_keeps_its_bounds(
    blocks: list[tuple[int, str, str]], limit_bytes: int
) -> None:
    heard = Heard(limit_bytes)
    for step, stream, text in sorted(blocks, key=lambda block: block[0]):
        heard.reader.feed(step, stream, text.encode())
    heard.reader.end_run(2)
    for stream in ("stdout", "stderr"):
        whole = "".join(text for _, one, text in sorted(blocks, key=lambda block: block[0]) if one == stream)
        before, marker, after = heard.text(stream).partition("\n[… ")
        if not marker:
            assert before == whole
            continue
        kept_after = after.partition("left out …]\n")[2]
        assert whole.startswith(before)
        assert whole.endswith(kept_after)
        assert len((before + kept_after).encode()) <= limit_bytes
        assert heard.reader.truncated


@pytest.mark.parametrize("limit_bytes", range(8, 24))
def test_a_cut_through_a_character_is_no_fault_of_the_output(limit_bytes: int) -> None:
    heard = Heard(limit_bytes)
    heard.reader.feed(0, "stdout", "ä€𝄞".encode() * 10)
    heard.reader.end_step(0)
    heard.reader.end_run(0)
    assert "\ufffd" not in heard.text()
    assert (heard.reader.truncated, heard.reader.replaced_bytes) == (True, False)


def test_the_tail_belongs_to_the_steps_that_printed_it() -> None:
    heard = Heard(8)
    heard.reader.feed(0, "stdout", b"aaaaaaa")
    heard.reader.end_step(0)
    heard.reader.feed(1, "stdout", b"b")
    heard.reader.end_step(1)
    heard.reader.end_run(1)
    assert heard.chunks == [(0, "stdout", "aaaaaa"), (0, "stdout", "a"), (1, "stdout", "b")]


def test_a_character_torn_by_the_end_of_its_step_is_replaced_and_said() -> None:
    heard = Heard(100)
    heard.reader.feed(0, "stdout", "a€".encode()[:2])
    heard.reader.end_step(0)
    heard.reader.feed(1, "stdout", b"b")
    heard.reader.end_step(1)
    heard.reader.end_run(1)
    assert heard.chunks == [(0, "stdout", "a"), (0, "stdout", "\ufffd"), (1, "stdout", "b")]
    assert heard.reader.replaced_bytes


def test_a_replacement_character_that_the_command_printed_itself_is_text() -> None:
    heard = Heard(100)
    heard.reader.feed(0, "stdout", "\ufffd".encode())
    assert (heard.text(), heard.reader.replaced_bytes) == ("\ufffd", False)


def test_a_chunk_is_never_larger_than_the_protocol_allows() -> None:
    heard = Heard(10 * CHUNK_BYTES)
    heard.reader.feed(0, "stdout", b"\xff" * (3 * CHUNK_BYTES))
    heard.reader.end_run(0)
    assert heard.text() == "\ufffd" * (3 * CHUNK_BYTES)
    assert max(len(text.encode()) for _, _, text in heard.chunks) <= CHUNK_BYTES
