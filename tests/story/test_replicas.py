"""Two server processes on one PostgreSQL: each occurrence fires once, each device is served where it is connected."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.servers.postgres import PostgresServer
from tests.story.fleet import Fleet, fleet


@pytest.fixture
def replicas(tmp_path: Path, postgres: PostgresServer) -> Iterator[tuple[Fleet, Fleet]]:
    url = postgres.create()
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with fleet(tmp_path / "one", url) as one:
        two = Fleet(tmp_path / "two", url)
        two.signing_key = tmp_path / "one" / "server" / "signing.key"
        try:
            two.start_server()
            yield one, two
        finally:
            two.stop()


def test_two_replicas_fire_each_occurrence_once_and_reach_both_devices(replicas: tuple[Fleet, Fleet]) -> None:
    one, two = replicas
    device_ids = [one.device("here"), two.device("there")]
    due_at = datetime.now(UTC) + timedelta(seconds=2)
    tasks = []
    for number in range(10):
        body = {
            "task_name": f"t{number}",
            "task_type": "command",
            "scheduled_time": due_at.isoformat(),
            "device_ids": device_ids,
            "command_payload": {"command": "echo $DEPLOYX_DEVICE_NAME", "shell": "sh"},
        }
        tasks.append(one.good(one.client.post("/api/schedule/tasks", json=body))["id"])
    for task_id in tasks:
        _wait_until_completed(two, task_id)
        (execution,) = one.get(f"/api/schedule/tasks/{task_id}")["executions"]
        assert execution["result"] == {"counts": {"succeeded": 2}}


def _wait_until_completed(story: Fleet, task_id: int) -> None:
    story.wait_for(lambda: story.get(f"/api/schedule/tasks/{task_id}")["status"] == "completed")


def test_the_devices_of_a_killed_replica_become_offline_when_its_lease_ends(replicas: tuple[Fleet, Fleet]) -> None:
    one, two = replicas
    device_id = two.device("there")
    two.kill_agent("there")
    two.kill_server()
    offline = one.wait_for(lambda: one.get(f"/api/devices/{device_id}")["status"] == "offline", seconds=60)
    assert offline
