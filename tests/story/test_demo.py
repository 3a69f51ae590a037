"""`deployx demo --once` and the command line's manners."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _deployx(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEPLOYX_")}
    command = [sys.executable, "-m", "deployx", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment | {"HOME": str(folder)},
        timeout=90,
        check=False,
    )


def test_the_demo_runs_a_scheduled_command_on_three_agents(tmp_path: Path) -> None:
    done = _deployx("demo", "--once", "--port", "0", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("demo-north", "demo-south", "demo-west"):
        assert f"{name}: succeeded, exit code 0: hello from {name}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--version"], 0, "deployx 0.1.0"),
        (["--help"], 0, "server"),
        (["serve"], 2, "serve"),
        (["server", "--host", "0.0.0.0"], 2, "there is no TLS"),
        (["server", "--port", "70000"], 2, "70000"),
        (["server", "--database-url", "mysql://x"], 2, "mysql"),
        (["agent", "run", "--data-dir", "nowhere"], 1, "No enrolment in nowhere"),
        (["agent", "enroll", "--server", "http://10.0.0.1", "--key", "k"], 2, "has no TLS"),
        (
            ["agent", "enroll", "--server", "http://127.0.0.1:9", "--key", "k", "--data-dir", "d"],
            4,
            "could not be reached",
        ),
        (["admin", "reset-password", "nobody", "--data-dir", "d"], 2, "no user named 'nobody'"),
    ],
)
def test_a_command_ends_with_its_exit_code_and_one_line(
    tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    done = _deployx(*arguments, folder=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if code:
        assert done.stderr.count("\n") == 1
