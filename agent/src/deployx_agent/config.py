"""Where an agent keeps its things, and what it knows of its server: one folder, one small JSON file."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


class NotEnrolled(Exception):
    """The data folder holds no enrolment that can be used; the sentence says what to do."""


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What enrolment gave this device; `server_public_key` is base64, `ca_file` an absolute path."""

    server: str
    device_id: int
    device_name: str
    installation_id: str
    server_public_key: str
    ca_file: str | None = None
    insecure_http: bool = False


def default_data_dir() -> Path:
    """The system's place for such data: of the machine for root, of the user otherwise."""
    if sys.platform == "win32":
        return Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData")) / "DeployX" / "agent"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "DeployX" / "agent"
    if os.geteuid() == 0:
        return Path("/var/lib/deployx-agent")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "deployx-agent"


def save(data_dir: Path, enrolment: Enrolment) -> None:
    """Write beside, fsync and rename, so that a crash leaves the old file or the new one."""
    beside = data_dir / "agent.json.new"
    with open(beside, "w", encoding="utf-8") as file:
        json.dump(asdict(enrolment), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, data_dir / "agent.json")


def load(data_dir: Path) -> Enrolment:
    """Read the enrolment. Raises NotEnrolled with a sentence."""
    path = data_dir / "agent.json"
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise NotEnrolled(f"No enrolment in {data_dir}: run `enroll` with this data folder first.") from None
    except ValueError as error:
        raise NotEnrolled(f"{path} is not readable ({error}): enrol again.") from None


def parse(values: Any) -> Enrolment:
    """Check each field's type; unknown keys are ignored. Raises ValueError that names the field."""
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    kinds = {"device_id": int, "insecure_http": bool}
    known = {field.name: values[field.name] for field in fields(Enrolment) if values.get(field.name) is not None}
    for field in fields(Enrolment):
        kind = kinds.get(field.name, str)
        optional = field.name in ("ca_file", "insecure_http")
        if not (isinstance(known.get(field.name), kind) or (optional and field.name not in known)):
            raise ValueError(f"{field.name} is {values.get(field.name)!r}, not {kind.__name__}")
    return Enrolment(**known)
