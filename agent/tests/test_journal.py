"""The journal: what is on disk decides what may start."""

from __future__ import annotations

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
    assert first.accept("a", 1, NOW, 1, "{}")
    assert not first.accept("a", 1, NOW, 1, "{}")
    journal_id = first.journal_id
    first.close()
    again = Journal(tmp_path / "journal.db")
    assert not again.accept("a", 1, NOW, 1, "{}")
    assert again.journal_id == journal_id
    again.close()


def test_two_journals_have_different_ids(tmp_path: Path, journal: Journal) -> None:
    other = Journal(tmp_path / "other.db")
    assert other.journal_id != journal.journal_id
    other.close()


def test_a_result_and_its_output_stay_until_they_are_acknowledged(journal: Journal) -> None:
    journal.accept("a", 1, NOW, 1, "{}")
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
    journal.accept("a", 1, NOW, 1, "{}")
    journal.finish("a", 1, {"status": "succeeded"})
    journal.finish("a", 1, {"status": "interrupted"})
    (entry,) = journal.unacknowledged()
    assert entry.result == {"status": "succeeded"}


def test_a_cancellation_that_comes_first_keeps_the_order_from_starting(journal: Journal) -> None:
    journal.finish("a", 1, {"status": "cancelled"})
    assert not journal.accept("a", 1, NOW, 1, "{}")


def test_the_highest_epoch_is_remembered(journal: Journal) -> None:
    journal.accept("a", 1, NOW, 3, "{}")
    journal.accept("b", 2, NOW, 2, "{}")
    assert journal.highest_epoch == 3


def test_forgotten_ids_are_below_the_watermark_and_unacknowledged_ones_stay(journal: Journal) -> None:
    for order_id in ("done", "open"):
        journal.accept(order_id, 1, NOW, 1, "{}")
        journal.finish(order_id, 1, {"status": "succeeded"})
    journal.result_acknowledged("done")
    later = NOW + KEPT_FOR + timedelta(days=1)
    journal.prune(later)
    assert journal.find("done") is None
    assert journal.find("open") is not None
    assert NOW.isoformat() < journal.watermark
