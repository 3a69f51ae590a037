"""Log lines: one shape for our events and for those of libraries, and no values of variables in them."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import logging, sys, structlog
from deployx import log
log.configure(sys.argv[1], sys.argv[2])
structlog.contextvars.bind_contextvars(request_id="r1")
structlog.get_logger().debug("quiet.event")
structlog.get_logger().info("own.event", task=7)
logging.getLogger("some.library").warning("of a %s", "library")
def fails(password):
    raise ValueError("it broke")
try:
    fails("pass" + "phrase")
except ValueError:
    structlog.get_logger().exception("it.failed")
"""


def written(log_format: str, level: str) -> str:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, log_format, level]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout == ""
    return done.stderr


def test_json_lines_of_ours_and_of_libraries_are_all_json_and_carry_the_requests_id() -> None:
    lines = [json.loads(line) for line in written("json", "debug").splitlines()]
    assert [line["event"] for line in lines] == ["quiet.event", "own.event", "of a library", "it.failed"]
    assert [line["level"] for line in lines] == ["debug", "info", "warning", "error"]
    assert {line["request_id"] for line in lines} == {"r1"}
    assert lines[1]["task"] == 7
    assert lines[2]["logger"] == "some.library"
    assert "ValueError: it broke" in lines[3]["exception"]


def test_a_level_leaves_out_what_is_below_it() -> None:
    assert "quiet.event" not in written("json", "info")
    assert "own.event" not in written("json", "warning")


def test_a_traceback_holds_no_values_of_variables() -> None:
    for log_format in ("json", "console"):
        text = written(log_format, "info")
        assert "ValueError: it broke" in text
        assert "passphrase" not in text
