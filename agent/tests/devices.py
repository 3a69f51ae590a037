"""A device for tests: its folders in the test's own, and nothing that reaches out."""

from __future__ import annotations

from pathlib import Path

from deployx_agent.device import Device

NOBODY = "http://127.0.0.1:9"


def device_at(folder: Path, server: str = NOBODY) -> Device:
    return Device.at(folder, server)
