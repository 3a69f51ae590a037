"""What an order does on a device, with real processes."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from agent.tests.waiting import lives, until

from deployx_agent.actions.commands import Commands, Rebooting
from deployx_agent.protocol import CHUNK_BYTES, Order
from deployx_agent.work import CommandWork, Step

NOW = datetime(2026, 11, 23, tzinfo=UTC)


async def _never(*_: object) -> None:
    raise AssertionError("nothing here restarts the device")


NO_REBOOTING = Rebooting(lambda: "boot", _never, _never, _never)


class Ran:
    """A run with what it printed."""

    def __init__(self, *commands: str | tuple[str, str], **changes: Any) -> None:
        timeout = changes.pop("timeout_seconds", 20)
        steps = tuple(
            Step(index, command[0], command[1], timeout)
            for index, command in enumerate((one, None) if isinstance(one, str) else one for one in commands)
        )
        values: dict[str, Any] = {
            "shell": "sh", "strategy": "transactional", "stop_on_failure": True, "steps": steps, "env": {},
            "working_directory": None, "run_as": None, "success_exit_codes": (0,), "output_limit_bytes": 1_048_576,
        }  # fmt: skip
        order_id = os.urandom(16).hex()
        work = CommandWork(**values | changes)
        order = Order(order_id, 1, "i", 1, 1, NOW, NOW, "command", work, {"DEPLOYX_ATTEMPT": "1"})
        self.chunks: list[tuple[int, str, str]] = []
        self.started = asyncio.Event()
        self.run = Commands(
            order,
            work,
            NO_REBOOTING,
            emit=lambda step, stream, text: self.chunks.append((step, stream, text)),
            on_start=self.started.set,
            grace_seconds=0.3,
        )
        self.result: dict[str, Any] = {}

    async def end(self) -> Ran:
        self.result = await self.run.run()
        return self

    def text(self, stream: str = "stdout") -> str:
        return "".join(text for _, one, text in self.chunks if one == stream)

    @property
    def statuses(self) -> list[tuple[int, str, str]]:
        return [(step["index"], step["kind"], step["status"]) for step in self.result["steps"]]


async def test_output_of_both_streams_is_kept_apart_with_its_step() -> None:
    ran = await Ran("echo out; echo err >&2", "echo two").end()
    assert (ran.result["status"], ran.result["exit_code"]) == ("succeeded", 0)
    assert sorted(ran.chunks) == [(0, "stderr", "err\n"), (0, "stdout", "out\n"), (1, "stdout", "two\n")]


@pytest.mark.parametrize(
    ("commands", "changes", "status", "statuses"),
    [
        (["true", "false", "true"], {}, "failed", ["succeeded", "failed", "skipped"]),
        (["false", "true"], {"stop_on_failure": False}, "failed", ["failed", "succeeded"]),
        (["exit 7"], {"success_exit_codes": (7,)}, "succeeded", ["succeeded"]),
        ([("true", "true"), ("true", "true"), "false"], {}, "rolled_back",
         ["succeeded", "succeeded", "failed", "succeeded", "succeeded"]),
        ([("true", "true"), "false"], {"strategy": "best_effort"}, "failed", ["succeeded", "failed"]),
        ([("true", "false"), ("true", "true"), "false"], {}, "failed",
         ["succeeded", "succeeded", "failed", "succeeded", "failed"]),
        ([("true", "true"), "false", "true"], {"stop_on_failure": False}, "rolled_back",
         ["succeeded", "failed", "succeeded", "succeeded"]),
    ],
)  # fmt: skip
async def test_a_batch_ends_as_its_strategy_says(
    commands: list[Any], changes: dict[str, Any], status: str, statuses: list[str]
) -> None:
    ran = await Ran(*commands, **changes).end()
    assert ran.result["status"] == status
    assert [one[2] for one in ran.statuses] == statuses


async def test_rollbacks_run_in_reverse_order() -> None:
    ran = await Ran(("echo do 0", "echo undo 0"), ("echo do 1", "echo undo 1"), "false").end()
    assert ran.text().splitlines() == ["do 0", "do 1", "undo 1", "undo 0"]


async def test_the_exit_code_is_that_of_the_first_failing_command() -> None:
    ran = await Ran("exit 3", "exit 4", stop_on_failure=False).end()
    assert ran.result["exit_code"] == 3
    assert "exit code 3" in ran.result["reason"]


async def test_a_timeout_ends_the_whole_tree_and_keeps_what_was_printed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    stubborn = (
        f"(setsid sh -c 'trap \"\" TERM; echo $$ >> {pids}; sleep 100' &) ; echo $$ >> {pids}; echo before; sleep 100"
    )
    ran = await Ran(stubborn, timeout_seconds=1).end()
    assert (ran.result["status"], ran.text()) == ("timed_out", "before\n")
    assert len(pids.read_text().split()) == 2
    assert not any(lives(int(pid)) for pid in pids.read_text().split())


async def test_a_stop_ends_the_tree_and_says_what_it_killed() -> None:
    ran = Ran("trap '' TERM; echo deaf; sleep 100 & wait; sleep 100")
    ending = asyncio.create_task(ran.end())
    await asyncio.wait_for(ran.started.wait(), 5)
    await until(lambda: "deaf" in ran.text())
    ran.run.stop("cancelled")
    await ending
    assert ran.result["status"] == "cancelled"
    assert ran.result["receipt"]["survived"] == []
    assert ran.result["receipt"]["killed"] != []


async def test_a_background_child_left_alone_lives_on_and_does_not_hold_up_the_run(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    ran = await Ran(f"sleep 30 & echo $! > {pid_file}; echo done").end()
    pid = int(pid_file.read_text())
    assert (ran.result["status"], ran.text()) == ("succeeded", "done\n")
    assert ran.result["duration_seconds"] < 10
    assert lives(pid)
    os.kill(pid, 9)


async def test_standard_input_is_empty() -> None:
    ran = await Ran("cat; echo end").end()
    assert ran.text() == "end\n"


async def test_output_beyond_the_limit_keeps_its_beginning_and_end_with_a_marker() -> None:
    ran = await Ran("seq 1 20000", output_limit_bytes=4000).end()
    text = ran.text()
    assert text.startswith("1\n2\n3\n")
    assert text.endswith("19999\n20000\n")
    assert "bytes of stdout left out" in text
    assert ran.result["truncated"]


async def test_much_output_at_once_comes_in_chunks_that_fit_into_a_frame() -> None:
    ran = await Ran("head -c 400000 /dev/zero | tr '\\0' '\\001'").end()
    assert ran.text() == "\x01" * 400_000
    assert max(len(text.encode()) for _, _, text in ran.chunks) <= CHUNK_BYTES


async def test_a_character_split_over_two_reads_stays_whole() -> None:
    ran = await Ran(r"printf '\303'; sleep 0.2; printf '\244'").end()
    assert (ran.text(), ran.result["replaced_bytes"]) == ("ä", False)


async def test_bytes_that_are_no_text_are_replaced_and_the_run_says_so() -> None:
    ran = await Ran(r"printf 'a\377b'").end()
    assert (ran.text(), ran.result["replaced_bytes"]) == ("a\ufffdb", True)


async def test_a_character_that_a_step_left_torn_does_not_spoil_the_next_ones_output() -> None:
    ran = await Ran(r"printf 'a\303'", "echo b").end()
    assert [(step, text) for step, _, text in ran.chunks] == [(0, "a"), (0, "\ufffd"), (1, "b\n")]


async def test_a_stop_during_a_rollback_ends_it_and_starts_no_other(tmp_path: Path) -> None:
    ran = Ran(("true", f"touch {tmp_path / 'undone'}"), ("true", "echo undoing; sleep 60"), "false")
    ending = asyncio.create_task(ran.end())
    await until(lambda: "undoing" in ran.text())
    ran.run.stop("interrupted")
    await ending
    assert ran.result["status"] == "interrupted"
    assert ran.statuses[-2:] == [(1, "rollback", "failed"), (0, "rollback", "skipped")]
    assert not (tmp_path / "undone").exists()


async def test_a_stop_that_comes_when_all_is_done_changes_nothing() -> None:
    ran = await Ran("true").end()
    ran.run.stop("cancelled")
    assert (ran.result["status"], ran.result["receipt"]) == ("succeeded", None)


async def test_a_timed_out_step_is_rolled_back_and_the_receipt_says_what_was_ended() -> None:
    ran = await Ran(("true", "echo undo 0"), ("exec sleep 60", "echo undo 1"), timeout_seconds=1).end()
    assert ran.text().splitlines() == ["undo 1", "undo 0"]
    assert ran.result["status"] == "rolled_back"
    assert len(ran.result["receipt"]["terminated"]) == 1
    assert ran.result["steps"][1]["detail"] == "Ended after its timeout of 1 s."


async def test_a_very_long_command_runs_as_a_script() -> None:
    ran = await Ran("echo " + "a" * 200_000 + " | wc -c").end()
    assert ran.text().strip() == "200001"


async def test_a_command_with_a_nul_fails_in_words() -> None:
    ran = await Ran("echo \0").end()
    assert (ran.result["status"], "could not be started" in ran.result["reason"]) == ("failed", True)


async def test_no_script_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    await Ran("echo one\necho two").end()
    await Ran("echo one\necho two", working_directory="/nowhere").end()
    await Ran("echo one\nsleep 60", timeout_seconds=1).end()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shell": "powershell"}, "no shell 'powershell'. It has: sh"),
        ({"shell": "python3"}, "no shell 'python3'"),
        ({"working_directory": "/nowhere"}, "'/nowhere' does not exist"),
        ({"run_as": "nobody-by-that-name"}, "'nobody-by-that-name' (`run_as`) does not exist"),
    ],
)
async def test_what_cannot_be_started_fails_with_its_reason(changes: dict[str, Any], words: str) -> None:
    ran = await Ran("true", **changes).end()
    assert (ran.result["status"], ran.result["exit_code"]) == ("failed", None)
    assert words in ran.result["reason"]


async def test_several_lines_are_a_script_and_the_environment_reaches_it() -> None:
    ran = await Ran('for n in 1 2; do\n  echo "$n $NAME $DEPLOYX_ATTEMPT"\ndone', env={"NAME": "x y"}).end()
    assert ran.text() == "1 x y 1\n2 x y 1\n"
