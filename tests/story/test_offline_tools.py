"""`deployx simulate` and `deployx admin verify`, as programs, on a server's own data folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from deployx.clock import SystemClock
from deployx.db import migrate
from deployx.db.database import Database
from tests.work.spine import NOW, Spine

DAILY: dict[str, Any] = {"recurrence_type": "daily", "recurrence_config": {"time": "12:00"}, "scheduled_time": None}


def deployx(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEPLOYX_")}
    return subprocess.run(
        [sys.executable, "-m", "deployx", *arguments], capture_output=True, text=True, env=environment, timeout=60,
        check=False,
    )  # fmt: skip


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    database = Database(f"sqlite:///{tmp_path / 'deployx.db'}", SystemClock())
    await database.open()
    await migrate.upgrade(database)
    spine = Spine(database)
    await spine.set_up(online=2)
    await spine.task(now=NOW, **DAILY)
    await spine.fire(NOW + timedelta(days=3, hours=12))
    await database.close()
    return tmp_path


def test_simulate_prints_the_ledger_that_the_clock_would_write_and_changes_nothing(folder: Path) -> None:
    before = (folder / "deployx.db").read_bytes()
    span = ("--from", "2027-01-01T00:00:00Z", "--to", "2027-01-04T00:00:00Z", "--data-dir", str(folder))
    done = deployx("simulate", *span, "--down", "2027-01-02T10:00:00Z..2027-01-02T12:10:00Z")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "2027-01-01T12:00:00Z  t (1)  completed",
        "2027-01-02T12:00:00Z  t (1)  missed: it was found later than its misfire grace allows.",
        "2027-01-03T12:00:00Z  t (1)  completed",
        "3 occurrences in 3 rows; each execution is taken to succeed at once.",
    ]
    assert (folder / "deployx.db").read_bytes() == before
    lines = deployx("simulate", *span, "--json").stdout.splitlines()
    assert [json.loads(line)["planned_for"][:10] for line in lines] == ["2027-01-01", "2027-01-02", "2027-01-03"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--from", "tomorrow", "--to", "2027-01-02T00:00:00Z"), "--from: 'tomorrow' is not an instant"),
        (("--from", "2027-01-02T00:00:00Z", "--to", "2027-01-02T00:00:00Z"), "is not after --from"),
        (
            ("--from", "2027-01-01T00:00:00Z", "--to", "2027-01-02T00:00:00Z", "--down", "noon"),
            "--down 'noon' is no stretch",
        ),
        (("--from", "2027-01-01T00:00:00Z"), "Missing option '--to'"),
    ],
)
def test_simulate_refuses_what_it_cannot_read_in_one_line(folder: Path, arguments: tuple[str, ...], why: str) -> None:
    done = deployx("simulate", *arguments, "--data-dir", str(folder))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert why in done.stderr


def test_the_offline_tools_say_where_they_looked_for_a_database(tmp_path: Path) -> None:
    done = deployx("admin", "verify", "--data-dir", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"There is no database at {tmp_path / 'deployx.db'}" in done.stderr


async def test_verify_is_content_with_a_whole_ledger_and_names_a_gap(folder: Path) -> None:
    done = deployx("admin", "verify", "--data-dir", str(folder))
    # The fixture's tasks were planned in what is the future or the past of the machine's clock; both are in order.
    assert done.returncode in (0, 1), done.stderr
    database = Database(f"sqlite:///{folder / 'deployx.db'}", SystemClock())
    await database.open()
    async with database.write() as session:
        shift = timedelta(days=3650) // timedelta(microseconds=1)  # so that all of it lies in the past
        for table, columns in (
            ("task_versions", ("effective_at",)),
            ("scheduled_task_executions", ("planned_for", "due_at")),
        ):
            for column in columns:
                await session.execute(text(f"UPDATE {table} SET {column} = {column} - {shift}"))
        await session.execute(
            text("UPDATE task_versions SET definition = replace(definition, '2026-11-23T02', '2016-11-23T02')")
        )
        last = await session.execute(text("SELECT max(planned_for) FROM scheduled_task_executions"))
        at = last.scalar_one() + 1
        await session.execute(
            text(
                "INSERT INTO task_versions (task_id, version, effective_at, action, definition, status)"
                " SELECT 1, 2, :at, 'pause', definition, 'paused' FROM task_versions"
            ),
            {"at": at},
        )
    await database.close()
    done = deployx("admin", "verify", "--data-dir", str(folder))
    assert done.stdout == "1 task, 4 owed occurrences: every one is in the ledger once.\n"
    assert done.returncode == 0
    await database.open()
    async with database.write() as session:
        await session.execute(text("PRAGMA foreign_keys = OFF"))
        await session.execute(text("UPDATE scheduled_task_executions SET planned_for = NULL WHERE id = 2"))
    await database.close()
    done = deployx("admin", "verify", "--data-dir", str(folder))
    assert done.returncode == 1
    assert "1 occurrence (2016-11-26T12:00:00Z) not in the ledger." in done.stdout
    assert "1 task, 4 owed occurrences: the ledger is wrong for 1 task." in done.stdout
