"""Orders inside one agent: how many run at once, what waits, what a failing store does, what a restart does."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from agent.tests.devices import device_at
from agent.tests.ordering_server import OrderingServer
from agent.tests.waiting import until

from deployx_agent import executor as executor_module
from deployx_agent import spool
from deployx_agent.executor import ORDERS_AT_ONCE, Executor, NotTaken
from deployx_agent.journal import Entry, Journal
from deployx_agent.protocol import encode, parse_order
from deployx_agent.reports import finished

NOW = datetime.now(UTC)


class Device:
    """An executor on a journal, and what it told."""

    def __init__(self, journal: Journal, folder: Path) -> None:
        self.journal = journal
        self._news = asyncio.Event()
        self.executor = Executor(journal, self._news.set, device_at(folder), grace_seconds=0.3)

    async def give(self, *commands: str, **changes: Any) -> str:
        body = encode(OrderingServer().order(*commands, **changes))
        order = parse_order(body)
        await self.executor.take(order, body)
        return order.order_id

    async def entry(self, order_id: str) -> Entry | None:
        return await self.executor.journalled(self.journal.find, order_id)

    async def result(self, order_id: str) -> dict[str, Any]:
        """The result that stands in the journal; waits for it."""
        await self.until(lambda: self._ended(order_id))
        entry = await self.entry(order_id)
        assert entry is not None
        return finished(entry)

    def told(self, kind: str) -> list[str]:
        return [str(one["order_id"]) for one in self.executor.events if one["type"] == kind]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def _ended(self, order_id: str) -> bool:
        entry = self.journal.find(order_id)
        return entry is not None and entry.state == "ended"


@contextlib.asynccontextmanager
async def device(folder: Path, kind: type[Journal] = Journal) -> AsyncIterator[Device]:
    made = Device(kind(folder / "journal.db"), folder)
    try:
        await made.executor.recover()
        yield made
    finally:
        await made.executor.stop(0)
        made.executor.close()
        made.journal.close()


async def test_sixteen_orders_run_at_once_and_more_wait_their_turn(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with device(tmp_path) as made:
        ids = [await made.give(f"until [ -e {gate} ]; do sleep 0.02; done") for _ in range(ORDERS_AT_ONCE + 2)]
        await made.until(lambda: len(made.told("started")) == ORDERS_AT_ONCE)
        states = [entry.state for one in ids if (entry := await made.entry(one))]
        assert states == ["starting"] * 16 + ["accepted"] * 2
        assert made.told("started") == ids[:ORDERS_AT_ONCE]
        gate.touch()
        assert [(await made.result(one))["status"] for one in ids] == ["succeeded"] * len(ids)


async def test_an_order_that_waits_is_cancelled_without_having_started(tmp_path: Path) -> None:
    async with device(tmp_path) as made:
        for _ in range(ORDERS_AT_ONCE):
            await made.give("sleep 60")
        waiting = await made.give(f"touch {tmp_path / 'ran'}")
        await made.executor.cancel(waiting, 812)
        result = await made.result(waiting)
        assert (result["status"], result["reason"]) == ("cancelled", "Cancelled before it started.")
        assert result["receipt"] == {"terminated": [], "killed": [], "survived": []}
        await made.executor.stop(0)
        assert not (tmp_path / "ran").exists()


async def test_a_stop_lets_runs_finish_in_time_and_ends_the_others_as_interrupted(tmp_path: Path) -> None:
    async with device(tmp_path) as made:
        short, long = await made.give("sleep 0.3; echo done"), await made.give("sleep 60")
        await made.executor.stop(1)
        assert (await made.result(short))["status"] == "succeeded"
        result = await made.result(long)
        assert (result["status"], result["reason"]) == ("interrupted", "The agent was stopped while this ran.")


class FailingJournal(Journal):
    """A store whose named methods fail as a full disk makes them, until it is put right."""

    fails: frozenset[str] = frozenset()

    def accept(self, *arguments: Any, **more: Any) -> Entry | None:
        self._fail("accept")
        return super().accept(*arguments, **more)

    def starting(self, *arguments: Any) -> None:
        self._fail("starting")
        super().starting(*arguments)

    def append_output(self, *arguments: Any) -> None:
        self._fail("append_output")
        super().append_output(*arguments)

    def finish(self, *arguments: Any) -> None:
        self._fail("finish")
        super().finish(*arguments)

    def _fail(self, name: str) -> None:
        if name in self.fails:
            raise sqlite3.OperationalError("database or disk is full")


@contextlib.asynccontextmanager
async def failing(folder: Path, *methods: str) -> AsyncIterator[tuple[Device, FailingJournal]]:
    async with device(folder, FailingJournal) as made:
        assert isinstance(made.journal, FailingJournal)
        made.journal.fails = frozenset(methods)
        yield made, made.journal
        made.journal.fails = frozenset()


async def test_an_order_whose_intent_cannot_be_written_is_refused_and_not_run(tmp_path: Path) -> None:
    async with failing(tmp_path, "accept") as (made, journal):
        for _ in range(ORDERS_AT_ONCE):
            with pytest.raises(NotTaken, match=r"disk is full\): nothing was started"):
                await made.give(f"touch {tmp_path / 'ran'}")
        journal.fails = frozenset()
        ids = [await made.give("true") for _ in range(ORDERS_AT_ONCE + 1)]
        assert [(await made.result(one))["status"] for one in ids] == ["succeeded"] * len(ids)
        assert not (tmp_path / "ran").exists()


async def test_an_order_whose_start_cannot_be_written_is_not_run(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with failing(tmp_path, "starting") as (made, _):
        for _ in range(ORDERS_AT_ONCE):
            await made.give(f"until [ -e {gate} ]; do sleep 0.02; done")
        waiting = await made.give(f"touch {tmp_path / 'ran'}")
        gate.touch()
        result = await made.result(waiting)
        assert (result["status"], "nothing was started" in result["reason"]) == ("failed", True)
        assert not (tmp_path / "ran").exists()


async def test_output_and_result_are_written_when_the_disk_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool, "AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(executor_module, "AGAIN_SECONDS", 0.02)
    async with failing(tmp_path, "append_output", "finish") as (made, journal):
        order_id = await made.give("echo one; sleep 0.2; echo two")
        await until(lambda: "output.not_written" in caplog.text and "order.not_written" in caplog.text)
        journal.fails = frozenset()
        result = await made.result(order_id)
        chunks = journal.output_after(order_id, -1, 10)
        assert (result["status"], result["last_seq"]) == ("succeeded", 1)
        assert [(one["seq"], one["text"]) for one in chunks] == [(0, "one\n"), (1, "two\n")]


@pytest.mark.parametrize(
    ("expires_in", "status", "ran"), [(timedelta(minutes=5), "succeeded", True), (timedelta(0), "interrupted", False)]
)
async def test_what_was_accepted_and_never_started_runs_after_a_restart_unless_it_expired(
    expires_in: timedelta, status: str, ran: bool, tmp_path: Path
) -> None:
    body = OrderingServer().order(f"touch {tmp_path / 'ran'}", expires_at=(NOW + expires_in).isoformat())
    journal = Journal(tmp_path / "journal.db")
    journal.accept(body["order_id"], 812, issued_at=NOW, epoch=1, body=encode(body))
    journal.close()
    async with device(tmp_path) as made:
        await made.executor.resume(NOW + timedelta(seconds=1))
        assert (await made.result(body["order_id"]))["status"] == status
    assert (tmp_path / "ran").exists() is ran


async def test_an_accepted_order_that_cannot_be_read_after_a_restart_fails_and_holds_up_nothing(tmp_path: Path) -> None:
    good = OrderingServer().order("true")
    journal = Journal(tmp_path / "journal.db")
    journal.accept("f" * 32, 812, issued_at=NOW, epoch=1, body="{}")
    journal.accept(good["order_id"], 812, issued_at=NOW, epoch=1, body=encode(good))
    journal.close()
    async with device(tmp_path) as made:
        await made.executor.resume(NOW)
        result = await made.result("f" * 32)
        assert (result["status"], result["reason"]) == ("failed", "Not readable: order.kind is None, not str.")
        assert (await made.result(good["order_id"]))["status"] == "succeeded"


async def test_what_may_have_run_before_a_restart_is_interrupted_and_its_last_output_known(tmp_path: Path) -> None:
    body = OrderingServer().order(f"touch {tmp_path / 'ran'}")
    order_id = body["order_id"]
    journal = Journal(tmp_path / "journal.db")
    journal.accept(order_id, 812, issued_at=NOW, epoch=1, body=encode(body), at_once=True)
    journal.append_output((order_id, {"seq": n, "step": 0, "stream": "stdout", "text": "x"}) for n in range(3))
    journal.output_acknowledged(order_id, 2)
    journal.close()
    async with device(tmp_path) as made:
        await made.executor.resume(NOW)
        result = await made.result(order_id)
        await made.executor.take(parse_order(encode(body)), encode(body))
    assert (result["status"], result["last_seq"]) == ("interrupted", 2)
    assert not (tmp_path / "ran").exists()


async def test_an_order_that_waits_for_the_first_session_can_be_cancelled(tmp_path: Path) -> None:
    body = OrderingServer().order(f"touch {tmp_path / 'ran'}")
    journal = Journal(tmp_path / "journal.db")
    journal.accept(body["order_id"], 812, issued_at=NOW, epoch=1, body=encode(body))
    journal.close()
    async with device(tmp_path) as made:
        await made.executor.cancel(body["order_id"], 812)
        await made.executor.resume(NOW)
        assert (await made.result(body["order_id"]))["status"] == "cancelled"
    assert not (tmp_path / "ran").exists()
