"""Whole trees of processes end, whatever they did to get away."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from agent.tests.waiting import lives, written

from deployx_agent import process
from deployx_agent.process import MARKER, Started, Surroundings

ESCAPES = {
    "a child": "sh -c 'echo $$ >> PIDS; sleep 100' & wait",
    "a session of its own": "setsid sh -c 'echo $$ >> PIDS; sleep 100' & wait",
    "forked twice": "(setsid sh -c '(sh -c \"echo \\$\\$ >> PIDS; sleep 100\" &) ; exit' &) ; sleep 100",
    "deaf to SIGTERM": "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ >> PIDS; sleep 100' & wait; sleep 100",
    "without the marker": "env -i PATH=$PATH setsid sh -c 'trap \"\" TERM; echo $$ >> PIDS; sleep 100' & wait",
    "forked twice without the marker": "(env -i PATH=$PATH setsid sh -c 'echo $$ >> PIDS; sleep 100' &) ; sleep 100",
    "forking while it ends": "while :; do sh -c 'echo $$ >> PIDS; sleep 100' & sleep 0.01; done",
}
PYTHON_DAEMON = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.environ.clear()
        with open("PIDS", "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(100)
    os._exit(0)
time.sleep(100)
"""


@pytest.mark.parametrize("escape", ESCAPES)
async def test_nothing_survives_the_end_of_its_tree_and_the_receipt_names_it(escape: str, tmp_path: Path) -> None:
    pids_file = tmp_path / "pids"
    started = await _started(ESCAPES[escape].replace("PIDS", str(pids_file)))
    receipt = await _end_and_check(started, pids_file)
    assert receipt.terminated or receipt.killed


async def test_a_daemon_that_forked_twice_and_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    pids_file = tmp_path / "pids"
    program = tmp_path / "daemon.py"
    program.write_text(PYTHON_DAEMON.replace("PIDS", str(pids_file)))
    started = await _started(f"{sys.executable} {program} & sleep 100")
    receipt = await _end_and_check(started, pids_file)
    assert int(pids_file.read_text()) in receipt.killed


async def test_what_ends_when_asked_is_terminated_and_not_killed() -> None:
    started = await _started("exec sleep 100")
    receipt = await process.end_tree(started.tree, grace_seconds=5)
    await _ended(started)
    assert (receipt.terminated, receipt.killed, receipt.survived) == ([started.pid], [], [])


async def test_what_a_dead_agents_order_left_is_found_by_its_marker_and_killed(tmp_path: Path) -> None:
    pids_file = tmp_path / "pids"
    command = f"(setsid sh -c 'trap \"\" TERM; echo $$ > {pids_file}; exec sleep 100' &)"
    order_id = uuid4().hex
    started = await _started(command, order_id=order_id)
    await asyncio.wait_for(started.exited.wait(), 5)
    await written(pids_file)
    receipt = await asyncio.to_thread(process.end_what_is_left, order_id)
    await _ended(started)
    assert int(pids_file.read_text()) in receipt.killed
    assert receipt.survived == []
    assert not lives(int(pids_file.read_text()))


async def test_other_orders_processes_are_let_alone() -> None:
    other, started = await _started("exec sleep 100"), await _started("exec sleep 100")
    await process.end_tree(started.tree, grace_seconds=5)
    assert lives(other.pid)
    await process.end_tree(other.tree, grace_seconds=5)
    await _ended(started)
    await _ended(other)


async def test_the_agents_own_secrets_and_the_marker_are_set_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYX_KEY", "secret")
    monkeypatch.setenv(MARKER, "an outer order")
    printed: list[bytes] = []
    around = Surroundings("mine", {"NAME": "x"}, None, None)
    started = await process.start(
        "sh", f'echo "$DEPLOYX_KEY,$NAME,${MARKER}"', around, lambda stream, block: printed.append(block)
    )
    await _ended(started)
    assert b"".join(printed) == b",x,mine\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
async def test_a_command_runs_as_another_user_with_its_groups_and_home() -> None:
    printed: list[bytes] = []
    around = Surroundings("mine", {}, None, "nobody")
    started = await process.start(
        "sh", "id -un\nid -gn\necho $HOME $USER", around, lambda stream, block: printed.append(block)
    )
    await _ended(started)
    user, group, login = b"".join(printed).decode().splitlines()
    assert (user, group, login) == ("nobody", "nogroup", "/nonexistent nobody")


async def _started(command: str, *, order_id: str | None = None) -> Started:
    """An order id of its own each time: other tests run beside this one, and a tree is found by it everywhere."""
    around = Surroundings(order_id or uuid4().hex, {}, None, None)
    return await process.start("sh", command, around, lambda stream, block: None)


async def _end_and_check(started: Started, pids_file: Path) -> process.Receipt:
    await written(pids_file)
    receipt = await process.end_tree(started.tree, grace_seconds=0.3)
    await _ended(started)
    pids = [int(pid) for pid in (await written(pids_file)).split()]
    assert receipt.survived == []
    assert not [pid for pid in pids if lives(pid)]
    assert not set(receipt.terminated) & set(receipt.killed)
    return receipt


async def _ended(started: Started) -> None:
    await asyncio.wait_for(started.exited.wait(), 5)
    await asyncio.wait_for(started.pipes_closed.wait(), 5)
    started.let_go()
