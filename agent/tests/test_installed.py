"""What DeployX installed on the device, written by several orders at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deployx_agent.installed import TOLD_AT_MOST, Installed
from deployx_agent.work import SoftwareItem


def item(name: str, version: str = "1") -> SoftwareItem:
    return SoftwareItem(5, name, version, ())


def test_of_many_orders_at_once_none_is_forgotten(tmp_path: Path) -> None:
    installed = Installed(tmp_path / "installed.json")
    names = [f"tool-{number}" for number in range(60)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda name: installed.add(item(name), "deb"), names))
    assert sorted(one["name"] for one in installed.told()) == sorted(names)


def test_a_newer_version_takes_the_place_of_the_older_and_a_removal_ends_it(tmp_path: Path) -> None:
    installed = Installed(tmp_path / "installed.json")
    for version in ("1", "2"):
        installed.add(item("tool", version), "deb")
    assert [(one["name"], one["version"], one["kind"], one["software_id"]) for one in installed.told()] == [
        ("tool", "2", "deb", 5)
    ]
    installed.remove(item("tool"))
    assert Installed(tmp_path / "installed.json").told() == []


def test_a_file_that_is_no_list_counts_as_none_and_long_lists_are_told_in_part(tmp_path: Path) -> None:
    path = tmp_path / "installed.json"
    path.write_text("no json")
    installed = Installed(path)
    assert installed.told() == []
    path.write_text("[" + ",".join('{"name": "x"}' for _ in range(TOLD_AT_MOST + 5)) + "]")
    assert len(installed.told()) == TOLD_AT_MOST
