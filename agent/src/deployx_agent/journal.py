"""What this device was told to do and what became of it, on disk: the arbiter of "at most once".

An order is written before it is started, and fsynced; an id that stands here never starts again. Output and results
stay until the server has acknowledged them. Used from one thread at a time (the executor's).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

KEPT_FOR = timedelta(days=90)
"""How long a finished id is remembered; orders issued before that are refused, so a forgotten id cannot come back."""

WRITES_WAIT_SECONDS = 5.0

Chunk = Mapping[str, Any]
"""A piece of output as it goes to the server: seq, step, stream, text."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS orders (
  order_id TEXT PRIMARY KEY, run_id INTEGER NOT NULL, issued_at TEXT NOT NULL, state TEXT NOT NULL,
  body TEXT, result TEXT, acknowledged INTEGER NOT NULL DEFAULT 0, acknowledged_through INTEGER NOT NULL DEFAULT -1,
  progress TEXT
);
CREATE INDEX IF NOT EXISTS orders_open ON orders (acknowledged) WHERE acknowledged = 0;
CREATE TABLE IF NOT EXISTS output (
  order_id TEXT NOT NULL, seq INTEGER NOT NULL, chunk TEXT NOT NULL, PRIMARY KEY (order_id, seq)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """An order in the journal.

    `state` is accepted (not started), starting (a process may run), rebooting (goes on after the restart, from its
    `progress`) or ended.
    """

    order_id: str
    run_id: int
    state: str
    body: str | None
    result: Mapping[str, Any] | None
    acknowledged: bool
    progress: Mapping[str, Any] | None = None


class Journal:
    """The journal in one SQLite file; every method that changes it returns after the change is on disk."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=WRITES_WAIT_SECONDS)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)
        self._add_column("progress", "TEXT")
        if not self._fact("journal_id", ""):
            self._db.execute("INSERT OR IGNORE INTO facts VALUES ('journal_id', ?)", (uuid4().hex,))
        self.journal_id: str = self._fact("journal_id", "")

    def close(self) -> None:
        self._db.close()

    def lowest_accepted(self) -> tuple[int, str]:
        """The epoch and the instant of issue (RFC 3339, UTC) below which an order is refused."""
        return self._highest_epoch(), self._watermark()

    def accept(
        self, order_id: str, run_id: int, *, issued_at: datetime, epoch: int, body: str, at_once: bool = False
    ) -> Entry | None:
        """Write the intent; answers what is known already of this id, None where it is new.

        `at_once` writes it as `starting`, in one commit, for an order that need not wait. A known id takes over the
        run's number: a server that was put back to an older state sends the same id under a new one.
        """
        state, kept = ("starting", None) if at_once else ("accepted", body)
        with _Transaction(self._db):
            done = self._db.execute(
                "INSERT OR IGNORE INTO orders (order_id, run_id, issued_at, state, body) VALUES (?, ?, ?, ?, ?)",
                (order_id, run_id, issued_at.isoformat(), state, kept),
            )
            if epoch > self._highest_epoch():
                self._db.execute("INSERT OR REPLACE INTO facts VALUES ('epoch', ?)", (str(epoch),))
            if done.rowcount == 1:
                return None
            self._db.execute(
                "UPDATE orders SET run_id = ?, issued_at = max(issued_at, ?) WHERE order_id = ?",
                (run_id, issued_at.isoformat(), order_id),
            )
        return self.find(order_id)

    def starting(self, order_id: str) -> None:
        """From here on a process may run: after a crash this order is interrupted, never started again."""
        self._db.execute("UPDATE orders SET state = 'starting', body = NULL WHERE order_id = ?", (order_id,))

    def rebooting(self, order_id: str, body: str, progress: Mapping[str, Any]) -> None:
        """The order goes on after a restart of the device, from here."""
        self._db.execute(
            "UPDATE orders SET state = 'rebooting', body = ?, progress = ? WHERE order_id = ?",
            (body, json.dumps(progress), order_id),
        )

    def append_output(self, chunks: Iterable[tuple[str, Chunk]]) -> None:
        """Store chunks as (order id, chunk) in one transaction."""
        with _Transaction(self._db):
            self._insert_output(chunks)

    def finish(
        self, order_id: str, run_id: int, result: Mapping[str, Any], chunks: Iterable[tuple[str, Chunk]] = ()
    ) -> None:
        """Store the result, and output with it in the same commit; a result that stands is never replaced.

        An id never seen (its cancellation came first) is written too, so that it cannot start.
        """
        with _Transaction(self._db):
            self._insert_output(chunks)
            self._db.execute(
                "INSERT INTO orders (order_id, run_id, issued_at, state, result) VALUES (?, ?, '', 'ended', ?)"
                " ON CONFLICT (order_id) DO UPDATE SET state = 'ended', result = excluded.result, body = NULL,"
                " progress = NULL"
                " WHERE state <> 'ended'",
                (order_id, run_id, json.dumps(result)),
            )

    def find(self, order_id: str) -> Entry | None:
        row = self._db.execute(f"SELECT {_ENTRY} FROM orders WHERE order_id = ?", (order_id,)).fetchone()
        return None if row is None else _entry(row)

    def unacknowledged(self) -> list[Entry]:
        """Everything the server has yet to acknowledge, oldest first."""
        rows = self._db.execute(f"SELECT {_ENTRY} FROM orders WHERE acknowledged = 0 ORDER BY rowid").fetchall()
        return [_entry(row) for row in rows]

    def last_seq(self, order_id: str) -> int:
        """The number of the last chunk that an order ever had, acknowledged or not; -1 where it printed nothing."""
        row = self._db.execute(
            "SELECT max(coalesce((SELECT max(seq) FROM output WHERE order_id = ?1), -1),"
            " coalesce((SELECT acknowledged_through FROM orders WHERE order_id = ?1), -1))",
            (order_id,),
        ).fetchone()
        return int(row[0])

    def output_after(self, order_id: str, seq: int, limit: int) -> list[dict[str, Any]]:
        rows = self._db.execute(
            "SELECT chunk FROM output WHERE order_id = ? AND seq > ? ORDER BY seq LIMIT ?", (order_id, seq, limit)
        )
        return [json.loads(row[0]) for row in rows]

    def output_acknowledged(self, order_id: str, through: int) -> None:
        with _Transaction(self._db):
            self._db.execute("DELETE FROM output WHERE order_id = ? AND seq <= ?", (order_id, through))
            self._db.execute(
                "UPDATE orders SET acknowledged_through = max(acknowledged_through, ?) WHERE order_id = ?",
                (through, order_id),
            )

    def result_acknowledged(self, order_id: str) -> None:
        """Forget the output and the details of an ended order; the id and its status stay."""
        with _Transaction(self._db):
            done = self._db.execute(
                "UPDATE orders SET acknowledged = 1, result = json_object('status', json_extract(result, '$.status'),"
                " 'exit_code', json_extract(result, '$.exit_code')) WHERE order_id = ? AND state = 'ended'",
                (order_id,),
            )
            if done.rowcount:
                self._db.execute("DELETE FROM output WHERE order_id = ?", (order_id,))

    def prune(self, server_now: datetime) -> None:
        """Forget acknowledged ids older than the kept span, and refuse from now on what was issued before it."""
        horizon = (server_now - KEPT_FOR).isoformat()
        if horizon <= self._watermark():
            return
        with _Transaction(self._db):
            self._db.execute("INSERT OR REPLACE INTO facts VALUES ('watermark', ?)", (horizon,))
            self._db.execute(
                "DELETE FROM orders WHERE acknowledged = 1 AND issued_at <> '' AND issued_at < ?", (horizon,)
            )

    def _add_column(self, name: str, kind: str) -> None:
        """For a journal that an earlier version of the agent made."""
        if name not in {row[1] for row in self._db.execute("PRAGMA table_info(orders)")}:
            self._db.execute(f"ALTER TABLE orders ADD COLUMN {name} {kind}")

    def _highest_epoch(self) -> int:
        return int(self._fact("epoch", "0"))

    def _watermark(self) -> str:
        return self._fact("watermark", "")

    def _insert_output(self, chunks: Iterable[tuple[str, Chunk]]) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO output VALUES (?, ?, ?)",
            [(order_id, chunk["seq"], json.dumps(chunk, ensure_ascii=False)) for order_id, chunk in chunks],
        )

    def _fact(self, name: str, otherwise: str) -> str:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return otherwise if row is None else str(row[0])


_ENTRY = "order_id, run_id, state, body, result, acknowledged, progress"


def _entry(row: Sequence[Any]) -> Entry:
    result, progress = (None if text is None else json.loads(text) for text in (row[4], row[6]))
    return Entry(row[0], row[1], row[2], row[3], result, bool(row[5]), progress)


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK when the block or the commit raises."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            # A commit that fails (disk full) leaves its transaction open, which would refuse all later ones.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
