"""The whole line with real processes: a server, agents, commands, and kills at the worst moments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.story.fleet import Fleet, fleet


@pytest.fixture
def story(tmp_path: Path, database_url: str) -> Iterator[Fleet]:
    with fleet(tmp_path, database_url) as made:
        yield made


def test_a_scheduled_command_runs_on_a_device_and_its_output_stands_in_the_history(story: Fleet) -> None:
    device_id = story.device("web")
    due_at = datetime.now(UTC) + timedelta(seconds=1)
    body = {
        "task_name": "Hello",
        "task_type": "command",
        "scheduled_time": due_at.isoformat(),
        "device_ids": [device_id],
        "command_payload": {"commands": ["echo out; echo err >&2", "echo $DEPLOYX_DEVICE_NAME; exit 3"], "shell": "sh"},
    }
    task = story.good(story.client.post("/api/schedule/tasks", json=body))
    path = f"/api/schedule/tasks/{task['id']}"
    story.wait_for(lambda: story.get(path)["status"] == "failed")
    (execution,) = story.get(path)["executions"]
    assert (execution["trigger"], execution["status"], execution["result"]) == (
        "schedule", "failed", {"counts": {"failed": 1}},
    )  # fmt: skip
    run = story.only_run(execution["deployment_id"])
    assert (run["status"], run["exit_code"]) == ("failed", 3)
    assert [(step["index"], step["status"], step["exit_code"]) for step in run["steps"]] == [
        (0, "succeeded", 0),
        (1, "failed", 3),
    ]
    page = story.get(f"/api/device-runs/{run['id']}/output")
    assert page["complete"]
    assert {(one["step"], one["stream"], one["text"]) for one in page["items"]} == {
        (0, "stdout", "out\n"), (0, "stderr", "err\n"), (1, "stdout", "web\n"),
    }  # fmt: skip


def test_a_server_killed_while_a_command_runs_finds_its_one_run_whole(story: Fleet) -> None:
    device_id = story.device("web")
    ran = story.folder / "ran"
    command = f"echo x >> {ran}; for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.3; done"
    deployment_id = story.run(command, [device_id])
    story.wait_for(lambda: story.only_run(deployment_id)["status"] == "running")
    story.kill_server()
    story.start_server()
    run = story.ended_run(deployment_id)
    assert (run["status"], run["exit_code"]) == ("succeeded", 0)
    assert story.output(run["id"]) == "".join(f"line {number}\n" for number in range(1, 9))
    assert ran.read_text() == "x\n"


def test_a_task_stored_before_a_restart_fires_after_it(story: Fleet) -> None:
    device_id = story.device("web")
    body = {
        "task_name": "Later",
        "task_type": "command",
        "scheduled_time": (datetime.now(UTC) + timedelta(seconds=2)).isoformat(),
        "device_ids": [device_id],
        "command_payload": {"command": "true"},
    }
    task = story.good(story.client.post("/api/schedule/tasks", json=body))
    story.kill_server()
    story.start_server()
    assert story.wait_for(lambda: story.get(f"/api/schedule/tasks/{task['id']}")["status"] == "completed")


def test_an_agent_killed_while_a_command_runs_reports_it_interrupted_and_never_runs_it_again(story: Fleet) -> None:
    device_id = story.device("web")
    ran, pid_file = story.folder / "ran", story.folder / "pid"
    deployment_id = story.run(f"echo $$ > {pid_file}; echo x >> {ran}; sleep 60", [device_id])
    story.wait_for(lambda: ran.exists() and story.only_run(deployment_id)["status"] == "running")
    story.kill_agent("web")
    story.start_agent("web")
    run = story.ended_run(deployment_id)
    assert run["status"] == "interrupted"
    assert ran.read_text() == "x\n"
    assert not _lives(int(pid_file.read_text()))


def test_work_for_an_absent_device_runs_when_it_comes_back_and_expires_at_its_deadline(story: Fleet) -> None:
    device_id = story.enroll("away")
    expiring = story.run("true", [device_id], offline_deadline_seconds=1)
    waiting = story.run("echo back", [device_id])
    assert story.only_run(waiting)["status"] == "waiting"
    expired = story.ended_run(expiring)
    assert expired["status"] == "expired"
    assert "deadline" in expired["reason"]
    story.start_agent("away")
    run = story.ended_run(waiting)
    assert (run["status"], story.output(run["id"])) == ("succeeded", "back\n")


def test_a_cancelled_run_leaves_no_process_and_brings_a_receipt(story: Fleet) -> None:
    device_id = story.device("web")
    pids = story.folder / "pids"
    command = f"(setsid sh -c 'trap \"\" TERM; echo $$ >> {pids}; sleep 1000' &) ; echo $$ >> {pids}; sleep 1000"
    deployment_id = story.run(command, [device_id])
    story.wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    story.good(story.client.post(f"/api/deployments/{deployment_id}/cancel"))
    run = story.ended_run(deployment_id)
    assert run["status"] == "cancelled"
    assert run["receipt"]["survived"] == []
    assert run["receipt"]["killed"] != []
    assert not any(_lives(int(pid)) for pid in pids.read_text().split())


def test_output_that_json_makes_six_times_as_long_arrives_whole(story: Fleet) -> None:
    device_id = story.device("web")
    deployment_id = story.run("head -c 600000 /dev/zero | tr '\\0' '\\001'; echo end", [device_id])
    run = story.ended_run(deployment_id)
    assert (run["status"], run["truncated"]) == ("succeeded", False)
    assert story.output(run["id"]) == "\x01" * 600_000 + "end\n"


def test_a_removed_device_is_cut_off_and_its_work_ends(story: Fleet) -> None:
    device_id = story.device("web")
    deployment_id = story.run("sleep 60", [device_id])
    story.wait_for(lambda: story.only_run(deployment_id)["status"] == "running")
    assert story.client.delete(f"/api/devices/{device_id}").status_code == 204
    assert story.ended_run(deployment_id)["status"] == "cancelled"
    log = story.folder / "web.log"
    story.wait_for(lambda: "code=revoked" in log.read_text(), seconds=10)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
