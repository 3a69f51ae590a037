"""The agent's command line: enroll, run, status. One line on stderr for an error, never a traceback."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
from pathlib import Path

from deployx_agent import __version__, config, lock, service
from deployx_agent.config import NotEnrolled
from deployx_agent.enrolling import FAILED, NOT_PERMITTED, WRONG_USAGE, EnrolmentFailed, enroll, require_safe
from deployx_agent.identity import BrokenKey
from deployx_agent.journal import Journal

DONE = 0


def main(argv: list[str] | None = None, prog: str = "deployx-agent") -> int:
    """Run one sub-command; answers the exit code: 0 done, 1 failed, 2 wrong usage, 3 not permitted, 4 not reachable."""
    try:
        options = _parser(prog).parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        code: int = options.action(options)
        return code
    except EnrolmentFailed as error:
        return _complain(prog, str(error), error.exit_code)
    except PermissionError as error:
        return _complain(prog, f"{error.filename or options.data_dir}: not permitted.", NOT_PERMITTED)
    except sqlite3.Error as error:
        return _complain(prog, f"The journal in {options.data_dir} cannot be used: {error}.", FAILED)
    except (NotEnrolled, BrokenKey, lock.Held, OSError) as error:
        return _complain(prog, str(error), FAILED)


def _complain(prog: str, sentence: str, code: int) -> int:
    print(f"{prog}: {sentence}", file=sys.stderr)  # noqa: T201 - a command line prints
    return code


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Runs work orders of a DeployX server on this device.")
    parser.add_argument("--version", action="version", version=f"deployx-agent {__version__}")
    commands = parser.add_subparsers(required=True, metavar="enroll|run|status")
    one = commands.add_parser("enroll", help="make this machine a device of a server")
    one.add_argument("--server", required=True, metavar="URL")
    keys = one.add_mutually_exclusive_group()
    keys.add_argument("--key", help="the activation key; else the environment's DEPLOYX_KEY, which ps does not show")
    keys.add_argument("--key-file", type=Path, metavar="F", help="a file that holds the activation key")
    one.add_argument("--name", default=platform.node() or "device", help="default: the host name")
    one.add_argument("--ca-file", type=Path, metavar="F", help="certificates to trust instead of the system's")
    one.add_argument("--insecure-http", action="store_true", help="allow a server without TLS off this machine")
    one.set_defaults(action=_enroll)
    one = commands.add_parser("run", help="connect and run what the server orders, until stopped")
    one.add_argument("--stop-timeout", type=_seconds, default=30.0, metavar="S", help="seconds for runs to finish (30)")
    one.set_defaults(action=_run)
    one = commands.add_parser("status", help="what this agent is and has to do")
    one.add_argument("--json", action="store_true")
    one.set_defaults(action=_status)
    for command in commands.choices.values():
        command.add_argument("--data-dir", type=Path, default=config.default_data_dir(), metavar="D")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 on")
    return value


def _enroll(options: argparse.Namespace) -> int:
    done = enroll(
        options.data_dir, options.server, _key(options), options.name,
        ca_file=options.ca_file, insecure_http=options.insecure_http,
    )  # fmt: skip
    print(f"Enrolled as {done.device_name!r} (device {done.device_id}). Start it with: deployx-agent run")  # noqa: T201
    return DONE


def _key(options: argparse.Namespace) -> str:
    key = options.key or os.environ.get("DEPLOYX_KEY", "")
    if options.key_file is not None:
        try:
            key = options.key_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise EnrolmentFailed(f"The key file {options.key_file} cannot be read: {why}.", WRONG_USAGE) from None
    if not key:
        raise EnrolmentFailed("No activation key: give --key or --key-file, or set DEPLOYX_KEY.", WRONG_USAGE)
    return str(key)


def _run(options: argparse.Namespace) -> int:
    enrolment = config.load(options.data_dir)
    require_safe(enrolment.server, insecure_http=enrolment.insecure_http)
    handle = lock.take(options.data_dir)
    try:
        service.run(options.data_dir, enrolment, stop_timeout_seconds=options.stop_timeout)
    finally:
        os.close(handle)
    return DONE


def _status(options: argparse.Namespace) -> int:
    enrolment = config.load(options.data_dir)
    journal = Journal(options.data_dir / "journal.db")
    entries = journal.unacknowledged()
    journal.close()
    found = {
        "device_id": enrolment.device_id,
        "device_name": enrolment.device_name,
        "server": enrolment.server,
        "running": lock.is_held(options.data_dir),
        "unfinished_orders": sum(one.state != "ended" for one in entries),
        "unacknowledged_results": sum(one.state == "ended" for one in entries),
        "version": __version__,
    }
    lines = [json.dumps(found)] if options.json else [f"{name}: {value}" for name, value in found.items()]
    print("\n".join(lines))  # noqa: T201
    return DONE
