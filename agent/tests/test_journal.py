"""The journal: what is on disk decides what may start."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deployx_agent.journal import KEPT_FOR, Journal

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal.db")
    yield made
    made.close()


def test_an_id_is_accepted_once_also_after_the_journal_was_reopened(tmp_path: Path) -> None:
    first = Journal(tmp_path / "journal.db")
    assert first.accept("a", 1, issued_at=NOW, epoch=1, body="{}") is None
    assert first.accept("a", 1, issued_at=NOW, epoch=1, body="{}") is not None
    journal_id = first.journal_id
    first.close()
    again = Journal(tmp_path / "journal.db")
    known = again.accept("a", 2, issued_at=NOW, epoch=1, body="{}")
    assert known is not None
    assert (known.state, known.run_id) == ("accepted", 2)
    assert again.journal_id == journal_id
    again.close()


def test_two_journals_have_different_ids(tmp_path: Path, journal: Journal) -> None:
    other = Journal(tmp_path / "other.db")
    assert other.journal_id != journal.journal_id
    other.close()


def test_a_result_and_its_output_stay_until_they_are_acknowledged(journal: Journal) -> None:
    journal.accept("a", 1, issued_at=NOW, epoch=1, body="{}")
    journal.starting("a")
    journal.append_output([("a", {"seq": n, "step": 0, "stream": "stdout", "text": f"{n}"}) for n in range(3)])
    journal.finish("a", 1, {"status": "succeeded", "exit_code": 0, "steps": []})
    journal.output_acknowledged("a", 1)
    assert [chunk["seq"] for chunk in journal.output_after("a", -1, 10)] == [2]
    (entry,) = journal.unacknowledged()
    assert (entry.state, entry.result) == ("ended", {"status": "succeeded", "exit_code": 0, "steps": []})
    journal.result_acknowledged("a")
    assert journal.unacknowledged() == []
    assert journal.output_after("a", -1, 10) == []
    known = journal.find("a")
    assert known is not None
    assert (known.acknowledged, known.result) == (True, {"status": "succeeded", "exit_code": 0})


def test_a_result_once_written_is_never_replaced(journal: Journal) -> None:
    journal.accept("a", 1, issued_at=NOW, epoch=1, body="{}")
    journal.finish("a", 1, {"status": "succeeded"})
    journal.finish("a", 1, {"status": "interrupted"})
    (entry,) = journal.unacknowledged()
    assert entry.result == {"status": "succeeded"}


def test_a_cancellation_that_comes_first_keeps_the_order_from_starting(journal: Journal) -> None:
    journal.finish("a", 1, {"status": "cancelled"})
    known = journal.accept("a", 1, issued_at=NOW, epoch=1, body="{}")
    assert known is not None
    assert known.state == "ended"


def test_the_highest_epoch_is_remembered(journal: Journal) -> None:
    journal.accept("a", 1, issued_at=NOW, epoch=3, body="{}")
    journal.accept("b", 2, issued_at=NOW, epoch=2, body="{}")
    assert journal.lowest_accepted() == (3, "")


def test_forgotten_ids_are_below_the_watermark_and_unacknowledged_ones_stay(journal: Journal) -> None:
    for order_id in ("done", "open"):
        journal.accept(order_id, 1, issued_at=NOW, epoch=1, body="{}")
        journal.finish(order_id, 1, {"status": "succeeded"})
    journal.result_acknowledged("done")
    later = NOW + KEPT_FOR + timedelta(days=1)
    journal.prune(later)
    assert journal.find("done") is None
    assert journal.find("open") is not None
    assert NOW.isoformat() < journal.lowest_accepted()[1]


def test_the_watermark_never_goes_back_with_the_servers_clock(journal: Journal) -> None:
    journal.prune(NOW)
    before = journal.lowest_accepted()
    journal.prune(NOW - timedelta(days=400))
    assert journal.lowest_accepted() == before


def test_the_intent_is_on_disk_before_accept_returns_and_says_whether_a_process_may_run(tmp_path: Path) -> None:
    writing, reading = Journal(tmp_path / "journal.db"), Journal(tmp_path / "journal.db")
    writing.accept("waits", 1, issued_at=NOW, epoch=1, body="{}")
    writing.accept("starts", 2, issued_at=NOW, epoch=1, body="{}", at_once=True)
    assert [(one.order_id, one.state, one.body) for one in reading.unacknowledged()] == [
        ("waits", "accepted", "{}"), ("starts", "starting", None),
    ]  # fmt: skip
    writing.starting("waits")
    assert [one.state for one in reading.unacknowledged()] == ["starting", "starting"]
    writing.close()
    reading.close()


def test_every_commit_is_synced(tmp_path: Path, journal: Journal) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_store_without_room_refuses_and_takes_again_when_it_has_some(journal: Journal) -> None:
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        journal.accept("a", 1, issued_at=NOW, epoch=1, body="x" * 100_000)
    assert journal.find("a") is None
    journal._db.execute("PRAGMA max_page_count = 1000000")
    assert journal.accept("a", 1, issued_at=NOW, epoch=1, body="x" * 100_000) is None


def test_an_acknowledgement_of_an_order_that_still_runs_forgets_nothing(journal: Journal) -> None:
    journal.accept("a", 1, issued_at=NOW, epoch=1, body="{}", at_once=True)
    journal.append_output([("a", {"seq": 0, "step": 0, "stream": "stdout", "text": "x"})])
    journal.result_acknowledged("a")
    assert [one.order_id for one in journal.unacknowledged()] == ["a"]
    assert len(journal.output_after("a", -1, 10)) == 1


def test_the_last_number_of_an_orders_output_is_known_after_it_was_acknowledged(journal: Journal) -> None:
    journal.accept("a", 1, issued_at=NOW, epoch=1, body="{}", at_once=True)
    assert journal.last_seq("a") == -1
    journal.append_output([("a", {"seq": n, "step": 0, "stream": "stdout", "text": "x"}) for n in range(4)])
    assert journal.last_seq("a") == 3
    journal.output_acknowledged("a", 3)
    assert journal.last_seq("a") == 3


def test_a_write_that_breaks_half_way_leaves_nothing_and_holds_up_nothing(journal: Journal) -> None:
    journal.accept("a", 1, issued_at=NOW, epoch=1, body="{}", at_once=True)
    with pytest.raises(TypeError):
        journal.finish("a", 1, {"status": object()}, [("a", {"seq": 0, "step": 0, "stream": "stdout", "text": "x"})])
    assert journal.output_after("a", -1, 10) == []
    assert journal.accept("b", 2, issued_at=NOW, epoch=1, body="{}") is None
