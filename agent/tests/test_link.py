"""A whole agent against a server that speaks the protocol: orders, refusals, broken links, acknowledgements."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from agent.tests.local_agent import LocalAgent
from agent.tests.ordering_server import OrderingServer
from agent.tests.waiting import until
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deployx_agent import link, protocol, session
from deployx_agent.journal import Entry, Journal
from deployx_agent.link import delay_seconds


async def test_an_order_is_accepted_started_and_finished_after_its_output(
    server: OrderingServer, agent: LocalAgent
) -> None:
    order_id = await server.give("echo out; echo err >&2; exit 3")
    finished = await server.message("finished", order_id)
    kinds = [one["type"] for one in server.heard if one.get("order_id") == order_id]
    assert [kinds[0], kinds[1], kinds[-1]] == ["accepted", "started", "finished"]
    assert set(kinds[2:-1]) == {"output"}
    assert (server.text(order_id), server.text(order_id, "stderr")) == ("out\n", "err\n")
    assert (finished["status"], finished["exit_code"], finished["last_seq"], finished["known"]) == (
        "failed", 3, 1, False,
    )  # fmt: skip


async def test_what_is_not_meant_for_this_device_now_is_rejected_and_not_run(
    server: OrderingServer, agent: LocalAgent, tmp_path: Path
) -> None:
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    ran = tmp_path / "ran"
    orders = [
        server.signed(server.order(f"touch {ran}"), Ed25519PrivateKey.generate()),
        server.signed(server.order(f"touch {ran}")) | {"signature": "no base64"},
        server.signed(server.order(f"touch {ran}", device_id=4)),
        server.signed(server.order(f"touch {ran}", expires_at=past)),
        server.signed(server.order(f"touch {ran}", steps="all")),
    ]
    for order in orders:
        await server.send(order)
    await server.until(lambda: len(server.all("rejected")) == len(orders))
    reasons = [one["reason"] for one in server.all("rejected")]
    for words, reason in zip(
        ["not signed by the server", "is not base64", "another device", "expired", "order.work.steps is 'all'"],
        reasons,
        strict=True,
    ):
        assert words in reason
    assert len(server.sessions) == 1
    assert not ran.exists()


async def test_an_epoch_lower_than_one_seen_is_rejected(server: OrderingServer, agent: LocalAgent) -> None:
    await server.message("finished", await server.give("true", epoch=2))
    rejected = await server.message("rejected", await server.give("true", epoch=1))
    assert "epoch 1 is older than 2" in rejected["reason"]


async def test_an_order_that_comes_again_is_answered_and_not_run_again_under_its_new_number(
    server: OrderingServer, agent: LocalAgent, tmp_path: Path
) -> None:
    body = server.order(f"echo x >> {tmp_path / 'ran'}")
    await server.send(server.signed(body))
    await server.message("finished")
    await _until_all_is_acknowledged(agent)
    await server.send(server.signed(body | {"run_id": 7}))
    await server.until(lambda: len(server.all("finished")) == 2)
    again = server.all("finished")[1]
    assert (again["run_id"], again["status"], again["known"]) == (7, "succeeded", True)
    assert (tmp_path / "ran").read_text() == "x\n"


async def test_what_was_not_acknowledged_is_sent_again_after_a_cut(server: OrderingServer, agent: LocalAgent) -> None:
    server.acknowledges = False
    order_id = await server.give("echo one; echo two >&2")
    first = await server.message("finished", order_id)
    server.acknowledges = True
    await server.cut()
    await server.until(lambda: len(server.all("finished", order_id)) == 2)
    hello, *after = server.sessions[1]
    assert hello["unfinished"] == [{"order_id": order_id, "run_id": 812, "state": "ended"}]
    assert [one["type"] for one in after] == ["output", "finished"]
    assert after[1] == first
    assert (server.text(order_id), server.text(order_id, "stderr")) == ("one\n", "two\n")
    await _until_all_is_acknowledged(agent)
    await server.cut()
    await server.until(lambda: len(server.sessions) == 3)
    assert server.sessions[2][0]["unfinished"] == []


async def test_a_session_sends_a_result_once_however_long_its_acknowledgement_takes(
    server: OrderingServer, agent: LocalAgent
) -> None:
    server.acknowledges = False
    ids = [await server.give("true"), await server.give("true")]
    for order_id in ids:
        await server.message("finished", order_id)
    await server.message("finished", await server.give("true"))
    assert [len(server.all("finished", order_id)) for order_id in ids] == [1, 1]


async def test_a_run_goes_on_while_the_link_is_down_and_loses_no_output(
    server: OrderingServer, agent: LocalAgent, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    order_id = await server.give(f"mkfifo {gate}; echo before; read line < {gate}; echo $line")
    await server.message("output", order_id)
    await server.cut()
    await server.stop()
    await asyncio.to_thread(gate.write_text, "after\n")
    await server.start()
    finished = await server.message("finished", order_id)
    assert (finished["status"], server.text(order_id)) == ("succeeded", "before\nafter\n")


async def test_no_more_than_the_window_is_on_the_wire_unacknowledged(server: OrderingServer, agent: LocalAgent) -> None:
    server.acknowledges = False
    order_id = await server.give("head -c 500000 /dev/zero | tr '\\0' a")
    await server.until(lambda: len(server.text(order_id)) > protocol.UNACKNOWLEDGED_BYTES - 9 * protocol.CHUNK_BYTES)
    await _until_ended(agent, order_id)
    with pytest.raises(TimeoutError):
        await server.until(lambda: len(server.text(order_id)) > protocol.UNACKNOWLEDGED_BYTES, seconds=0.3)
    server.acknowledges = True
    last = server.all("output", order_id)[-1]["chunks"][-1]["seq"]
    await server.send({"type": "output_ack", "order_id": order_id, "through": last})
    await server.message("finished", order_id)
    assert server.text(order_id) == "a" * 500_000


async def test_a_cancellation_ends_a_run_and_one_that_comes_first_keeps_it_from_starting(
    server: OrderingServer, agent: LocalAgent, tmp_path: Path
) -> None:
    running = await server.give("sleep 60")
    await server.message("started", running)
    await server.cancel(running)
    finished = await server.message("finished", running)
    assert (finished["status"], finished["receipt"]["terminated"] != [], finished["receipt"]["survived"]) == (
        "cancelled", True, [],
    )  # fmt: skip
    body = server.order(f"touch {tmp_path / 'ran'}")
    await server.cancel(body["order_id"])
    assert (await server.message("finished", body["order_id"]))["status"] == "cancelled"
    await _until_all_is_acknowledged(agent)
    await server.send(server.signed(body))
    await server.until(lambda: len(server.all("finished", body["order_id"])) == 2)
    assert server.all("finished", body["order_id"])[1]["known"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "message",
    [
        {"type": "teleport"},
        {"type": "cancel"},
        {"type": "output_ack", "order_id": "x", "through": "all"},
        {"type": "order", "body": "[]", "signature": ""},
        {"type": "heartbeat_ack", "server_time": "noon"},
        {"type": "welcome", "session": "s", "server_time": "2026-11-23T00:00:00Z", "heartbeat_seconds": 30},
        {"type": "refused", "code": "replaced", "detail": "A newer session."},
    ],
)
async def test_a_message_that_breaks_the_protocol_ends_the_session_and_not_the_agent(
    message: dict[str, Any], server: OrderingServer, agent: LocalAgent
) -> None:
    await server.send(message)
    await server.until(lambda: len(server.sessions) == 2)
    finished = await server.message("finished", await server.give("true"))
    assert finished["status"] == "succeeded"


async def test_a_silent_server_is_left_and_tried_again(
    server: OrderingServer, agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "SILENT_AFTER_SECONDS", 0.2)
    await server.cut()
    await server.until(lambda: len(server.sessions) >= 4)
    assert len(server.sessions) >= 4


async def test_heartbeats_keep_a_session_open_and_changed_facts_are_told(
    server: OrderingServer, agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "SILENT_AFTER_SECONDS", 2.5)
    monkeypatch.setattr(session, "FACTS_EVERY_SECONDS", 1)
    server.heartbeat_seconds = 1
    await server.cut()
    await server.until(lambda: len(server.sessions) == 2)
    monkeypatch.setattr(link, "collect", lambda *_: {"os": "amiga"})
    facts = await server.message("facts")
    await server.until(lambda: len(server.all("heartbeat")) >= 3)
    assert facts["facts"] == {"os": "amiga"}
    assert len(server.sessions) == 2


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The spans that the agent chooses its delays from; each delay is short."""
    spans: list[tuple[float, float]] = []

    def note(low: float, high: float) -> float:
        spans.append((low, high))
        return 0.01

    monkeypatch.setattr("random.uniform", note)
    return spans


async def test_delays_start_anew_after_a_session(
    delays: list[tuple[float, float]], server: OrderingServer, agent: LocalAgent
) -> None:
    server.refusal = {"type": "refused", "code": "replaced", "detail": "A newer session."}
    await server.cut()
    await server.until(lambda: len(server.all("hello")) >= 4)
    server.refusal = None
    await server.until(lambda: len(server.sessions) == 2)
    grown = len(delays)
    await server.cut()
    await server.until(lambda: len(server.sessions) == 3)
    ceilings = [high for _, high in delays]
    assert ceilings[:grown] == sorted(set(ceilings[:grown]))
    assert ceilings[grown] == ceilings[0]


@pytest.mark.parametrize("code", ["unknown_device", "revoked"])
async def test_a_device_that_is_not_wanted_backs_off_to_the_longest_delay(
    code: str, delays: list[tuple[float, float]], server: OrderingServer, agent: LocalAgent
) -> None:
    server.refusal = {"type": "refused", "code": code, "detail": "Enrol again."}
    await server.cut()
    await server.until(lambda: len(server.all("hello")) >= 4)
    assert delays[-1] == (30.0, 60.0)


async def test_nothing_is_signed_for_another_installation(
    server: OrderingServer, agent: LocalAgent, caplog: pytest.LogCaptureFixture
) -> None:
    server.installation_id = "another"
    await server.cut()
    await until(lambda: "another server" in caplog.text)
    assert len(server.all("hello")) == 1


def test_delays_double_from_under_a_second_to_a_minute_and_vary() -> None:
    for attempt, ceiling in [(0, 1), (1, 2), (3, 8), (6, 60), (1000, 60)]:
        delays = [delay_seconds(attempt) for _ in range(300)]
        assert 0.25 <= min(delays) < max(delays) <= ceiling
        assert max(delays) > ceiling * 0.8


class SlowJournal(Journal):
    """Takes an order in only when it may."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked, self.may = threading.Event(), threading.Event()

    def accept(self, *arguments: Any, **more: Any) -> Entry | None:
        self.asked.set()
        assert self.may.wait(10)
        return super().accept(*arguments, **more)


async def test_an_order_that_is_being_journalled_when_the_link_breaks_runs_all_the_same(
    server: OrderingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link, "SHORTEST_DELAY_SECONDS", 0.02)
    caplog.set_level("INFO")
    server.heartbeat_seconds = 1
    journal = SlowJournal(tmp_path / "journal.db")
    async with LocalAgent(tmp_path, journal).running():
        await server.message("hello")
        order_id = await server.give("echo here")
        assert await asyncio.to_thread(journal.asked.wait, 10)
        await server.cut()
        await until(lambda: "disconnected" in caplog.text)  # noticed by the heartbeat, in the middle of taking it
        journal.may.set()
        finished = await server.message("finished", order_id)
    assert (finished["status"], server.text(order_id)) == ("succeeded", "here\n")


async def _until_ended(agent: LocalAgent, order_id: str) -> None:
    await until(lambda: (entry := agent.journal.find(order_id)) is not None and entry.state == "ended")


async def _until_all_is_acknowledged(agent: LocalAgent) -> None:
    await until(lambda: not agent.journal.unacknowledged())
