"""The line between agent and server under TLS, with a certificate of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.story.certificates import certificate
from tests.story.fleet import fleet


def test_a_command_runs_over_tls_and_an_agent_that_does_not_trust_the_server_stays_away(tmp_path: Path) -> None:
    with fleet(tmp_path, f"sqlite:///{tmp_path / 'tls.db'}", certificate(tmp_path)) as story:
        device_id = story.device("web")
        run = story.ended_run(story.run("echo secure", [device_id]))
        assert (run["status"], story.output(run["id"])) == ("succeeded", "secure\n")
        command = [sys.executable, "-m", "deployx_agent", "enroll", "--server", str(story.client.base_url)]
        environment = {**os.environ, "DEPLOYX_KEY": "any"}
        refused = subprocess.run(
            [*command, "--data-dir", "other"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 4
        assert "certificate" in refused.stderr
