"""An order goes on after a restart of the device: two agents on one journal, and a boot id of the test's own."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent.tests.devices import device_at
from agent.tests.ordering_server import OrderingServer
from agent.tests.waiting import until

from deployx_agent.actions import commands
from deployx_agent.executor import Executor
from deployx_agent.journal import Journal
from deployx_agent.protocol import encode, parse_order
from deployx_agent.reports import finished, unfinished


class Machine:
    """A device whose agents come and go; `refusal` is what the system says to a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.boot = "first"
        self.restarts = 0
        self.refusal: str | None = None
        self.journal: Journal
        self.executor: Executor

    async def restart(self) -> str | None:
        self.restarts += 1
        return self.refusal

    async def agent(self) -> None:
        self.journal = Journal(self.folder / "journal.db")
        device = replace(device_at(self.folder), boot_id=lambda: self.boot, restart=self.restart)
        self.executor = Executor(self.journal, lambda: None, device, grace_seconds=0.3)
        await self.executor.recover()

    async def give(self, *steps: dict[str, Any], **changes: Any) -> str:
        body = OrderingServer().order("true", **changes)
        body["work"]["steps"] = [
            {"index": index, "rollback": None, "timeout_seconds": 20} | step for index, step in enumerate(steps)
        ]
        order = parse_order(encode(body))
        await self.executor.take(order, encode(body))
        return order.order_id

    async def gone(self) -> None:
        """SIGTERM, as a system that goes down sends it."""
        async with asyncio.timeout(5):
            await self.executor.stop(30)
        self.executor.close()
        self.journal.close()

    async def result(self, order_id: str) -> dict[str, Any]:
        def ended() -> bool:
            found = self.journal.find(order_id)
            return found is not None and found.state == "ended"

        await until(ended)
        found = self.journal.find(order_id)
        assert found is not None
        return finished(found)


@pytest.fixture
async def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    await made.agent()
    return made


def steps(result: dict[str, Any]) -> list[tuple[int, str, str]]:
    return [(step["index"], step["kind"], step["status"]) for step in result["steps"]]


REBOOT = {"reboot": True}


async def test_commands_go_on_after_the_restart_and_their_output_too(machine: Machine, tmp_path: Path) -> None:
    log = tmp_path / "log"
    order_id = await machine.give({"run": f"echo one; echo 1 >> {log}"}, REBOOT, {"run": f"echo two; echo 2 >> {log}"})
    await until(lambda: machine.restarts)
    (entry,) = machine.journal.unacknowledged()
    assert (entry.state, unfinished([entry])[0]["state"]) == ("rebooting", "running")
    await machine.gone()
    machine.boot = "second"
    await machine.agent()
    result = await machine.result(order_id)
    assert (result["status"], machine.restarts) == ("succeeded", 1)
    assert steps(result) == [(0, "command", "succeeded"), (1, "reboot", "succeeded"), (2, "command", "succeeded")]
    assert log.read_text() == "1\n2\n"
    assert [chunk["text"] for chunk in machine.journal.output_after(order_id, -1, 10)] == ["one\n", "two\n"]
    await machine.gone()


async def test_an_agent_that_starts_again_without_a_restart_goes_on_waiting_for_it(machine: Machine) -> None:
    order_id = await machine.give(REBOOT)
    await until(lambda: machine.restarts)
    await machine.gone()
    await machine.agent()
    await asyncio.sleep(0)
    found = machine.journal.find(order_id)
    assert found is not None
    assert found.state == "rebooting"
    await machine.gone()
    machine.boot = "second"
    await machine.agent()
    assert ((await machine.result(order_id))["status"], machine.restarts) == ("succeeded", 1)
    await machine.gone()


async def test_a_restart_that_does_not_come_times_out_and_what_was_done_is_rolled_back(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "BOOT_LOOKED_AT_SECONDS", 0.05)
    undone = tmp_path / "undone"
    order_id = await machine.give(
        {"run": "true", "rollback": f"touch {undone}"}, REBOOT | {"timeout_seconds": 1}, {"run": "true"}
    )
    result = await machine.result(order_id)
    assert (result["status"], undone.exists()) == ("rolled_back", True)
    assert steps(result)[1:] == [(1, "reboot", "timed_out"), (2, "command", "skipped"), (0, "rollback", "succeeded")]
    assert result["reason"] == "Restart 1: The device did not restart within 1 s."
    await machine.gone()


async def test_a_restart_that_the_system_refuses_fails_with_its_words(machine: Machine) -> None:
    machine.refusal = "The device could not be restarted: no."
    result = await machine.result(await machine.give(REBOOT))
    assert (result["status"], result["reason"]) == ("failed", machine.refusal)
    await machine.gone()


async def test_a_cancel_while_the_device_is_to_restart_ends_the_order(machine: Machine) -> None:
    order_id = await machine.give(REBOOT, {"run": "true"})
    await until(lambda: machine.restarts)
    await machine.executor.cancel(order_id, 812)
    result = await machine.result(order_id)
    assert (result["status"], steps(result)) == ("cancelled", [(0, "reboot", "failed"), (1, "command", "skipped")])
    await machine.gone()


async def test_an_agent_that_is_killed_after_the_restart_reports_interrupted(machine: Machine, tmp_path: Path) -> None:
    order_id = await machine.give(REBOOT, {"run": f"touch {tmp_path}/began; sleep 30"})
    await until(lambda: machine.restarts)
    await machine.gone()
    machine.boot = "second"
    await machine.agent()
    await until((tmp_path / "began").exists)
    another = Machine(tmp_path / "another")
    another.folder.mkdir()
    for name in ("journal.db", "journal.db-wal"):  # what is on disk when the agent is killed now
        await asyncio.to_thread(shutil.copy, tmp_path / name, another.folder)
    another.boot = "second"
    await another.agent()
    assert (await another.result(order_id))["status"] == "interrupted"
    await another.gone()
    await machine.gone()


async def test_limits_keep_a_device_from_being_restarted(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("allow_reboot = false")
    result = await machine.result(await machine.give(REBOOT))
    assert (result["status"], "allow_reboot in limits.toml" in result["reason"]) == ("failed", True)
    assert machine.restarts == 0
    await machine.gone()
