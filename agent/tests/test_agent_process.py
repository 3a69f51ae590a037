"""Real agent processes, killed and stopped at the worst moments, against a server that speaks the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from agent.tests.ordering_server import OrderingServer
from agent.tests.waiting import lives, until, written


class AgentProcess:
    """One agent process; what it logs is kept in a file."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def ends(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; answers its exit code."""
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 20)


@contextlib.asynccontextmanager
async def agent_process(folder: Path, *options: str) -> AsyncIterator[AgentProcess]:
    log = folder / "agent.log"
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deployx_agent", "run", "--data-dir", str(folder), *options, stderr=handle
    )
    os.close(handle)
    try:
        yield AgentProcess(process, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_killed_agents_run_is_ended_and_interrupted_and_never_run_again(
    server: OrderingServer, tmp_path: Path
) -> None:
    ran, left = tmp_path / "ran", tmp_path / "left"
    deaf = f"(setsid sh -c 'trap \"\" TERM; echo $$ > {left}; sleep 100' &)"
    body = server.order(f"echo $$ >> {ran}; {deaf}; echo begun; sleep 60")
    order_id = body["order_id"]
    async with agent_process(tmp_path) as first:
        await server.until(lambda: server.sessions)
        await server.send(server.signed(body))
        await server.until(lambda: server.text(order_id) == "begun\n")
        pids = [int(await written(ran)), int(await written(left))]
        await first.kill()
    assert all(lives(pid) for pid in pids)
    async with agent_process(tmp_path):
        finished = await server.message("finished", order_id)
        assert not any(lives(pid) for pid in pids)
        assert set(pids) <= {*finished["receipt"]["killed"], *finished["receipt"]["terminated"]}
        assert finished["receipt"]["survived"] == []
        assert (finished["status"], finished["last_seq"], server.text(order_id)) == ("interrupted", 0, "begun\n")
        (entry,) = server.sessions[1][0]["unfinished"]
        assert entry == {"order_id": order_id, "run_id": 812, "state": "ended"}
        await server.send(server.signed(body))
        await server.message("finished", await server.give("true"))
    assert len((await written(ran)).split()) == 1


async def test_a_result_that_was_not_acknowledged_survives_the_agents_death(
    server: OrderingServer, tmp_path: Path
) -> None:
    server.acknowledges = False
    async with agent_process(tmp_path) as first:
        order_id = await _given(server, "echo kept")
        await server.message("finished", order_id)
        await first.kill()
    server.acknowledges = True
    server.heard.clear()
    async with agent_process(tmp_path) as second:
        finished = await server.message("finished", order_id)
        assert (finished["status"], server.text(order_id)) == ("succeeded", "kept\n")
        assert await second.ends() == 0


async def test_an_agent_that_is_asked_to_stop_lets_its_runs_finish_and_reports_them(
    server: OrderingServer, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with agent_process(tmp_path) as agent:
        order_id = await _given(server, f"until [ -e {gate} ]; do sleep 0.02; done; echo done")
        await server.message("started", order_id)
        ending = asyncio.create_task(agent.ends())
        await until(lambda: "stopping" in agent.log.read_text())
        late = await _given(server, f"touch {tmp_path / 'late'}")
        gate.touch()
        assert await ending == 0
    assert (await server.message("finished", order_id))["status"] == "succeeded"
    assert server.text(order_id) == "done\n"
    assert server.all("accepted", late) == []
    assert not (tmp_path / "late").exists()


async def test_runs_that_outlast_the_stop_timeout_are_ended_and_reported_as_interrupted(
    server: OrderingServer, tmp_path: Path
) -> None:
    async with agent_process(tmp_path, "--stop-timeout", "0.1") as agent:
        order_id = await _given(server, f"echo $$ > {tmp_path / 'pid'}; sleep 60")
        pid = int(await written(tmp_path / "pid"))
        assert await agent.ends(signal.SIGINT) == 0
        assert not lives(pid)
    finished = await server.message("finished", order_id)
    assert (finished["status"], finished["reason"]) == ("interrupted", "The agent was stopped while this ran.")


async def test_a_second_agent_on_a_folder_ends_with_one_line(server: OrderingServer, tmp_path: Path) -> None:
    async with agent_process(tmp_path):
        await server.message("hello")
        async with agent_process(tmp_path) as second:
            assert await asyncio.wait_for(second.process.wait(), 10) == 1
            lines = [line for line in second.log.read_text().splitlines() if "Another agent" in line]
    assert lines == [f"deployx-agent: Another agent uses {tmp_path}: stop it, or name another folder with --data-dir."]


async def test_each_event_is_one_line_of_log(server: OrderingServer, tmp_path: Path) -> None:
    async with agent_process(tmp_path) as agent:
        order_id = await _given(server, "true")
        await server.message("finished", order_id)
        await server.cut()
        await until(lambda: "disconnected reason=" in agent.log.read_text())
        assert await agent.ends() == 0
        log = agent.log.read_text()
    events = [line.split()[3] for line in log.splitlines()]
    assert events[:5] == ["connected", "order.accepted", "order.started", "order.finished", "disconnected"]
    assert f"order.finished order={order_id} run=812 status=succeeded" in log


async def _given(server: OrderingServer, command: str) -> str:
    await server.until(lambda: server.sessions)
    return await server.give(command)
