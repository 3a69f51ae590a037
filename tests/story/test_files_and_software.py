"""Files and software on real agents: what arrives, what fails and leaves what was there, what a kill only delays."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent.tests.file_server import file_server

from tests.story.fleet import Fleet, fleet


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path, f"sqlite:///{tmp_path / 'deployx.db'}") as made:
        yield made


def upload(story: Fleet, name: str, content: bytes) -> int:
    answer = story.client.post("/api/files", files={"file": (name, content)}, timeout=120)
    return int(story.good(answer)["id"])


def deploy(story: Fleet, kind: str, payload: dict[str, Any], device_ids: list[int], **more: Any) -> int:
    field = {"file_deployment": "file_payload", "software_deployment": "software_payload"}[kind]
    body = {"deployment_type": kind, field: payload, "device_ids": device_ids} | more
    return int(story.good(story.client.post("/api/deployments", json=body))["id"])


def steps(run: dict[str, Any]) -> list[tuple[str, str]]:
    return [(step["kind"], step["status"]) for step in run["steps"]]


def test_files_arrive_whole_with_their_mode_and_a_second_time_they_may_stay(story: Fleet) -> None:
    device_id = story.device("web")
    contents = {"app.conf": b"listen 80\n", "naïve ☃.bin": os.urandom(3_000_000), "empty": b""}
    file_ids = [upload(story, name, content) for name, content in contents.items()]
    target = story.folder / "etc" / "app"
    payload = {"file_ids": file_ids, "target_path": str(target), "mode": "0640"}
    run = story.ended_run(deploy(story, "file_deployment", payload, [device_id]))
    assert (run["status"], steps(run)) == ("succeeded", [("download", "succeeded")] * 3 + [("place", "succeeded")] * 3)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == contents
    assert {path.stat().st_mode & 0o7777 for path in target.iterdir()} == {0o640}
    (target / "app.conf").write_text("changed here\n")
    stays = payload | {"overwrite": False}
    again = story.ended_run(deploy(story, "file_deployment", stays, [device_id]))
    assert (again["status"], steps(again)[3:]) == ("succeeded", [("place", "skipped")] * 3)
    assert (target / "app.conf").read_text() == "changed here\n"


def test_what_cannot_be_placed_fails_with_a_sentence_and_leaves_what_was_there(story: Fleet) -> None:
    device_id = story.device("web")
    good, bad = upload(story, "a.conf", b"new"), upload(story, "../b.conf", b"escape")
    place = story.folder / "place"
    (place / "taken").mkdir(parents=True)
    (place / "a.conf").write_bytes(b"old")
    (story.folder / "link").symlink_to(place)
    cases: list[tuple[list[int], str, dict[str, Any], str]] = [
        ([good], "C:\\Deployment\\Files", {}, "is a Windows path, and this device does not run Windows."),
        ([good], str(place / "no"), {"create_path_if_not_exists": False}, "does not exist on this device"),
        ([good], str(place / "a.conf"), {}, "is no folder."),
        ([good], str(story.folder / "link"), {}, "is a link, which is not followed without follow_links."),
        ([bad], str(place), {}, "is no file name: it is empty, dots, or holds a separator."),
        ([good], "/proc/sys", {}, "cannot be written"),
        ([good], str(place), {"owner": "nobody-by-this-name"}, "does not exist on this device."),
        (
            [good],
            str(place),
            {"mode": "4755"},
            "has the setuid or setgid bit, which this device's limits do not allow.",
        ),
    ]
    for file_ids, target, changes, said in cases:
        payload: dict[str, Any] = {"file_ids": file_ids, "target_path": target, **changes}
        run = story.ended_run(deploy(story, "file_deployment", payload, [device_id]))
        assert (run["status"], said in run["reason"]) == ("failed", True), run
    assert (place / "a.conf").read_bytes() == b"old"
    assert sorted(path.name for path in place.iterdir()) == ["a.conf", "taken"]
    assert not (story.folder / "b.conf").exists()


def test_with_a_backup_a_failing_deployment_puts_back_all_that_it_had_replaced(story: Fleet) -> None:
    device_id = story.device("web")
    file_ids = [upload(story, name, b"new") for name in ("a", "b", "c")]
    place = story.folder / "place"
    (place / "c").mkdir(parents=True)  # in the way of the third
    (place / "a").write_bytes(b"old")
    payload = {"file_ids": file_ids, "target_path": str(place), "backup": True}
    run = story.ended_run(deploy(story, "file_deployment", payload, [device_id]))
    assert run["status"] == "failed"
    assert sorted((path.name, path.is_dir()) for path in place.iterdir()) == [("a", False), ("c", True)]
    assert (place / "a").read_bytes() == b"old"


def test_a_killed_server_and_a_killed_agent_only_delay_a_file(story: Fleet) -> None:
    device_id = story.device("web")
    content = os.urandom(200_000_000)
    file_id = upload(story, "big.bin", content)
    place = story.folder / "place"
    retry = {"max_attempts": 5, "initial_delay_seconds": 0, "max_delay_seconds": 0, "on": ["interrupted", "failed"]}
    payload = {"file_ids": [file_id], "target_path": str(place)}
    deployment_id = deploy(story, "file_deployment", payload, [device_id], retry=retry)
    downloads = story.folder / "web" / "downloads"
    story.wait_for(lambda: any(path.stat().st_size > 1_000_000 for path in downloads.glob("*.part")))
    story.kill_server()
    story.start_server()
    story.kill_agent("web")
    story.start_agent("web")
    where = f"/api/deployments/{deployment_id}"
    story.wait_for(lambda: story.get(where)["completed_at"], seconds=90)
    assert story.get(where)["status"] == "completed", story.get(f"{where}/devices")
    placed = (place / "big.bin").read_bytes()
    assert hashlib.sha256(placed).digest() == hashlib.sha256(content).digest()
    assert list(downloads.iterdir()) == []


def test_a_cancelled_file_deployment_ends_in_the_middle_and_places_nothing(story: Fleet) -> None:
    device_id = story.device("web")
    file_id = upload(story, "big.bin", os.urandom(100_000_000))
    place = story.folder / "place"
    deployment_id = deploy(story, "file_deployment", {"file_ids": [file_id], "target_path": str(place)}, [device_id])
    story.wait_for(lambda: story.only_run(deployment_id)["status"] == "running")
    story.good(story.client.post(f"/api/deployments/{deployment_id}/cancel"))
    run = story.ended_run(deployment_id)
    assert run["status"] in ("cancelled", "succeeded")
    assert run["status"] == "succeeded" or not (place / "big.bin").exists()


def software(story: Fleet, name: str, *installers: dict[str, Any], **more: Any) -> int:
    body = {"name": name, "version": "1.0", "installers": list(installers)} | more
    return int(story.good(story.client.post("/api/software", json=body))["id"])


def test_software_is_detected_installed_with_what_it_needs_and_verified(story: Fleet) -> None:
    device_id = story.device("web")
    place = story.folder / "opt"
    place.mkdir()
    script = upload(story, "install.sh", f"echo base >> {place}/log; touch {place}/base\n".encode())
    base = software(
        story, "base",
        {"os": "linux", "kind": "sh", "file_id": script, "detect_command": f"test -e {place}/base",
         "uninstall_command": f"rm {place}/base"},
    )  # fmt: skip
    archive = story.folder / "tool.tar.gz"
    (story.folder / "tool.txt").write_text("tool")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(story.folder / "tool.txt", "tool-1.0/tool.txt")
    packed = upload(story, "tool.tar.gz", archive.read_bytes())
    tool = software(
        story, "tool",
        {"os": "linux", "kind": "archive", "file_id": packed, "detect_command": f"test -e {place}/tool.txt",
         "install_command": f"echo tool >> {place}/log; cp tool-1.0/tool.txt {place}; echo from $DEPLOYX_FILE"},
        depends_on=[base],
    )  # fmt: skip
    run = story.ended_run(deploy(story, "software_deployment", {"software_ids": [tool]}, [device_id]))
    assert (run["status"], (place / "log").read_text()) == ("succeeded", "base\ntool\n"), run
    assert steps(run) == [(kind, "succeeded") for kind in ("detect", "download", "install", "detect")] * 2
    assert "tool.tar.gz" in story.output(run["id"])
    again = story.ended_run(deploy(story, "software_deployment", {"software_ids": [tool]}, [device_id]))
    assert (again["status"], (place / "log").read_text()) == ("succeeded", "base\ntool\n")
    assert [(one["kind"], one["status"], one["detail"]) for one in again["steps"] if one["kind"] == "install"] == [
        ("install", "skipped", "base: already installed"), ("install", "skipped", "tool: already installed"),
    ]  # fmt: skip
    removal = {"software_ids": [base], "action": "uninstall"}
    removed = story.ended_run(deploy(story, "software_deployment", removal, [device_id]))
    assert (removed["status"], (place / "base").exists()) == ("succeeded", False)
    impossible = {"software_ids": [tool], "action": "uninstall"}
    refused = story.ended_run(deploy(story, "software_deployment", impossible, [device_id]))
    assert (refused["status"], "nothing tells how to uninstall it" in refused["reason"]) == ("failed", True)


def test_an_installer_that_lies_is_found_out(story: Fleet) -> None:
    device_id = story.device("web")
    script = upload(story, "lie.sh", b"exit 0\n")
    liar = software(story, "liar", {"os": "linux", "kind": "sh", "file_id": script, "detect_command": "false"})
    run = story.ended_run(deploy(story, "software_deployment", {"software_ids": [liar]}, [device_id]))
    assert (run["status"], run["reason"]) == (
        "failed", "liar is not there after the install, whatever the exit code says.",
    )  # fmt: skip


def _package(folder: Path, version: str) -> bytes:
    root = folder / f"package-{version}"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr/share/deployx-story").mkdir(parents=True)
    (root / "usr/share/deployx-story/version").write_text(version)
    control = f"Package: deployx-story\nVersion: {version}\nArchitecture: all\nMaintainer: t <t@example.org>\n"
    (root / "DEBIAN/control").write_text(f"{control}Description: a package of a test\n")
    made = folder / f"deployx-story_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", str(root), str(made)], check=True, capture_output=True)
    return made.read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="installs a package: needs root")
def test_a_debian_package_is_installed_upgraded_and_removed_by_the_systems_own_tools(story: Fleet) -> None:
    device_id = story.device("web")
    told = Path("/usr/share/deployx-story/version")
    try:
        for version in ("1.0", "1.1"):
            file_id = upload(story, f"deployx-story_{version}_all.deb", _package(story.folder, version))
            body = {"name": "story", "version": version}
            installer = {"os": "linux", "kind": "deb", "file_id": file_id}
            identity = int(
                story.good(story.client.post("/api/software", json=body | {"installers": [installer]}))["id"]
            )
            for place in range(2):
                run = story.ended_run(deploy(story, "software_deployment", {"software_ids": [identity]}, [device_id]))
                (install,) = (step for step in run["steps"] if step["kind"] == "install")
                assert (run["status"], install["status"]) == ("succeeded", "skipped" if place else "succeeded"), run
            assert told.read_text() == version
        removal = {"software_ids": [identity], "action": "uninstall"}
        for expected in ("succeeded", "skipped"):
            run = story.ended_run(deploy(story, "software_deployment", removal, [device_id]))
            (removed,) = (step for step in run["steps"] if step["kind"] == "uninstall")
            assert (run["status"], removed["status"], told.exists()) == ("succeeded", expected, False), run
    finally:
        subprocess.run(["dpkg", "--purge", "deployx-story"], check=False, capture_output=True)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("apt-get"), reason="installs with apt: needs root and apt")
def test_a_package_comes_from_the_systems_package_manager_and_goes_again(story: Fleet) -> None:
    device_id = story.device("web")
    name = "hello"
    subprocess.run(["apt-get", "remove", "-y", "-q", name], check=False, capture_output=True)
    payload: dict[str, Any] = {"software_ids": [], "custom_software": name}
    for action, outcome in (("install", True), ("install", True), ("uninstall", False), ("uninstall", False)):
        deployment_id = deploy(story, "software_deployment", payload | {"action": action}, [device_id])
        story.wait_for(lambda: story.get(f"/api/deployments/{deployment_id}")["completed_at"], seconds=120)  # noqa: B023
        run = story.only_run(deployment_id)
        assert run["status"] == "succeeded", (run, story.output(run["id"]))
        assert (shutil.which(name) is not None) is outcome
    assert steps(run) == [("detect", "succeeded"), ("uninstall", "skipped")]


def test_software_from_an_address_is_checked_before_it_runs(story: Fleet) -> None:
    device_id = story.device("web")
    content = f"touch {story.folder}/ran\n".encode()
    digest = hashlib.sha256(content).hexdigest()
    with file_server() as server:
        server.contents["/tool.sh"] = content
        for sha256, status in (("0" * 64, "failed"), (digest, "succeeded")):
            custom = {"name": "tool", "url": f"{server.url}/tool.sh", "sha256": sha256}
            payload = {"software_ids": [], "custom_software": custom}
            run = story.ended_run(deploy(story, "software_deployment", payload, [device_id]))
            assert (run["status"], (story.folder / "ran").exists()) == (status, status == "succeeded"), run
    assert "has another SHA-256" in story.only_run(1)["reason"]
