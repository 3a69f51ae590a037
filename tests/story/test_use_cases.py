"""The four uses that the feature was first described by, on real agents, with Linux's counterparts of the commands."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.story.fleet import Fleet, fleet
from tests.story.test_files_and_software import software, upload


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path, f"sqlite:///{tmp_path / 'deployx.db'}") as made:
        yield made


def group(story: Fleet, name: str, *device_ids: int) -> int:
    identity = int(story.good(story.client.post("/api/groups", json={"name": name}))["id"])
    for device_id in device_ids:
        assert story.client.put(f"/api/groups/{identity}/devices/{device_id}").status_code == 204
    return identity


def soon() -> datetime:
    return (datetime.now(UTC) + timedelta(seconds=2)).replace(microsecond=0)


def first_execution(story: Fleet, body: dict[str, Any]) -> dict[str, Any]:
    """Create the task, and wait until its first occurrence has ended."""
    task = story.good(story.client.post("/api/schedule/tasks", json=body))
    path = f"/api/schedule/tasks/{task['id']}"

    def ended() -> dict[str, Any] | None:
        (found, *_) = story.get(path)["executions"] or [None]
        return found if found and found["completed_time"] else None

    execution = story.wait_for(ended)
    assert execution is not None
    assert (execution["trigger"], execution["planned_for"]) == (
        "schedule", body["scheduled_time"].replace("+00:00", "Z"),
    )  # fmt: skip
    assert story.get(path)["status"] == "pending", "a recurring task waits for its next occurrence"
    return execution


def runs(story: Fleet, execution: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = story.get(f"/api/deployments/{execution['deployment_id']}/devices")["items"]
    return found


def test_daily_system_cleanup(story: Fleet) -> None:
    devices = [story.device(name) for name in ("one", "two")]
    scratch = story.folder / "scratch"
    (scratch / "deep").mkdir(parents=True)
    for name in ("a.tmp", "deep/b.tmp"):
        (scratch / name).write_text("x")
    at = soon()
    execution = first_execution(story, {
        "task_name": "Daily Cleanup", "task_type": "command", "scheduled_time": at.isoformat(),
        "recurrence_type": "daily", "recurrence_config": {"type": "daily", "time": f"{at:%H:%M:%S}"},
        "device_ids": devices,
        "command_payload": {
            "command": 'find "$SCRATCH" -type f -delete', "shell": "sh", "env": {"SCRATCH": str(scratch)},
        },
    })  # fmt: skip
    assert (execution["status"], execution["result"]) == ("completed", {"counts": {"succeeded": 2}})
    assert [path.name for path in scratch.rglob("*")] == ["deep"]


def test_weekly_software_updates(story: Fleet) -> None:
    devices = [story.device(name) for name in ("one", "two")]
    groups = [group(story, "first", devices[0]), group(story, "both", *devices)]
    ids = []
    for name in ("patch-a", "patch-b", "patch-c"):
        script = upload(story, f"{name}.sh", f"touch {story.folder}/{name}-$DEPLOYX_DEVICE_NAME\n".encode())
        detect = f"test -e {story.folder}/{name}-$DEPLOYX_DEVICE_NAME"
        ids.append(software(story, name, {"os": "linux", "kind": "sh", "file_id": script, "detect_command": detect}))
    at = soon()
    execution = first_execution(story, {
        "task_name": "Weekly Patch Tuesday", "task_type": "software_deployment", "scheduled_time": at.isoformat(),
        "recurrence_type": "weekly",
        "recurrence_config": {"type": "weekly", "days_of_week": [at.weekday()], "time": f"{at:%H:%M:%S}"},
        "group_ids": groups,
        "software_payload": {"software_ids": ids, "deployment_name": "Weekly Security Updates"},
    })  # fmt: skip
    assert (execution["status"], execution["result"]) == ("completed", {"counts": {"succeeded": 2}})
    assert len(list(story.folder.glob("patch-?-*"))) == 6
    deployment = story.get(f"/api/deployments/{execution['deployment_id']}")
    assert (deployment["deployment_type"], deployment["deployment_name"]) == (
        "software_deployment", "Weekly Security Updates",
    )  # fmt: skip

    def installed() -> bool:
        told = story.get(f"/api/devices/{devices[0]}")["facts"].get("installed", [])
        return [one["name"] for one in told] == ["patch-a", "patch-b", "patch-c"]

    story.wait_for(installed)


def test_monthly_configuration_backup(story: Fleet) -> None:
    devices = [story.device(name) for name in ("one", "two", "three")]
    files = [upload(story, name, name.encode()) for name in ("site.conf", "users.conf")]
    at = soon()
    target = story.folder / "backups" / "config"
    execution = first_execution(story, {
        "task_name": "Monthly Config Backup", "task_type": "file_deployment", "scheduled_time": at.isoformat(),
        "recurrence_type": "monthly",
        "recurrence_config": {"type": "monthly", "day_of_month": at.day, "time": f"{at:%H:%M:%S}"},
        "device_ids": devices,
        "file_payload": {"file_ids": files, "target_path": str(target), "create_path_if_not_exists": True,
                         "deployment_name": "Monthly Backup"},
    })  # fmt: skip
    assert (execution["status"], execution["result"]) == ("completed", {"counts": {"succeeded": 3}})
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "site.conf": "site.conf", "users.conf": "users.conf",
    }  # fmt: skip


def test_business_hours_system_check(story: Fleet) -> None:
    devices = [story.device(name) for name in ("one", "two")]
    checked = group(story, "checked", *devices)
    at = soon()
    body = {
        "task_name": "Morning Health Check", "task_type": "command",
        "recurrence_type": "custom", "recurrence_config": {"type": "custom", "cron_expression": "0 9 * * 1-5"},
        "group_ids": [checked],
        "command_payload": {"commands": ["uname -s", "exit 3", "nproc"], "shell": "sh", "stop_on_failure": False},
    }  # fmt: skip
    preview = story.good(story.client.post("/api/schedule/preview", json=body))
    planned = [datetime.fromisoformat(one["planned_for"]) for one in preview["occurrences"]]
    assert {(one.hour, one.minute) for one in planned} == {(9, 0)}
    assert {one.weekday() for one in planned} <= {0, 1, 2, 3, 4}
    due = {"recurrence_type": "interval", "recurrence_config": {"every_seconds": 86_400}}
    execution = first_execution(story, body | due | {"scheduled_time": at.isoformat()})
    assert (execution["status"], execution["result"]) == ("failed", {"counts": {"failed": 2}})
    for run in runs(story, execution):
        assert [(step["status"], step["exit_code"]) for step in run["steps"]] == [
            ("succeeded", 0), ("failed", 3), ("succeeded", 0),
        ]  # fmt: skip
        assert story.output(run["id"]).startswith("Linux\n")
