"""Putting files into folders: whole or not at all, never where a planted link leads, and back when it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from deployx_agent.actions import placing
from deployx_agent.actions.placing import CannotPlace, Rights, Stopped, check_name, check_path, open_folder
from deployx_agent.limits import Limits, NotAllowed

USUAL = Rights(None, None, None)
OPEN = Limits()
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system or changes owners: needs root")


class Place:
    """A folder of the test, and a file to put there."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "folder"
        self.folder.mkdir()
        self.source = tmp_path / "source"
        self.source.write_text("new")

    def put(self, name: str = "a", rights: Rights = USUAL, limits: Limits = OPEN, **more: Any) -> bool:
        options: dict[str, Any] = {"overwrite": True, "backup": False, "stopped": threading.Event()} | more
        follow_links = options.pop("follow_links", False)
        path = str(options.pop("path", self.folder))
        folder = open_folder(path, create=False, follow_links=follow_links, limits=limits)
        try:
            return folder.place(name, self.source, rights, **options)
        finally:
            folder.close()

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "../x", "a\0b", "é" * 128])
def test_a_name_that_is_no_name_in_a_folder_is_refused(name: str) -> None:
    with pytest.raises(CannotPlace):
        check_name(name)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("C:\\Deployment\\Files", "is a Windows path"),
        ("\\\\server\\share", "is a Windows path"),
        ("etc/app", "is no absolute path"),
        ("/srv/../etc", "holds '..'"),
    ],
)
def test_a_path_of_another_system_or_none_at_all_is_refused(path: str, said: str) -> None:
    with pytest.raises(CannotPlace, match=said.replace("\\", "\\\\").replace(".", "\\.")):
        check_path(path)


def test_a_file_replaces_another_and_keeps_its_mode_unless_told(place: Place) -> None:
    (place.folder / "a").write_text("old")
    (place.folder / "a").chmod(0o604)
    assert place.put()
    assert ((place.folder / "a").read_text(), (place.folder / "a").stat().st_mode & 0o777) == ("new", 0o604)
    assert place.put(rights=Rights.of("0751", None, Limits()))
    assert (place.folder / "a").stat().st_mode & 0o777 == 0o751
    assert place.names() == ["a"]


def test_a_link_or_a_folder_or_a_pipe_in_its_place_is_left_alone(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("untouched")
    (place.folder / "link").symlink_to(other)
    (place.folder / "dir").mkdir()
    os.mkfifo(place.folder / "pipe")
    for name, said in (("link", "is a link"), ("dir", "is a folder"), ("pipe", "is no plain file")):
        with pytest.raises(CannotPlace, match=said):
            place.put(name)
    assert other.read_text() == "untouched"
    assert place.put("link", follow_links=True)
    assert (other.read_text(), (place.folder / "link").is_symlink()) == ("new", True)
    assert place.names() == ["dir", "link", "pipe"]


def test_a_link_in_the_path_is_refused_and_followed_only_within_the_allowed_roots(place: Place, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(place.folder)
    with pytest.raises(CannotPlace, match="is a link"):
        place.put(path=tmp_path / "way")
    assert place.put(path=tmp_path / "way", follow_links=True)
    allowed = Limits(allowed_roots=(str(tmp_path / "way"),))
    with pytest.raises(NotAllowed, match="is not below a folder that this device allows"):
        place.put(path=tmp_path / "way", follow_links=True, limits=allowed)


def test_a_link_that_is_planted_while_the_path_is_walked_leads_nowhere(place: Place, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    inner, aside = place.folder / "inner", tmp_path / "aside"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            inner.mkdir(exist_ok=True)
            inner.rename(aside)
            inner.symlink_to(outside)
            inner.unlink()
            aside.rename(inner)

    inner.mkdir()
    swapping = threading.Thread(target=swap)
    swapping.start()
    placed = 0
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                placed += place.put(path=inner)
            except CannotPlace:
                continue
    finally:
        stop.set()
        swapping.join()
    assert placed > 0
    assert list(outside.iterdir()) == []


def test_a_stop_in_the_middle_leaves_what_was_there_and_nothing_beside_it(place: Place) -> None:
    (place.folder / "a").write_text("old")
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Stopped):
        place.put(stopped=stopped)
    assert (place.names(), (place.folder / "a").read_text()) == (["a"], "old")


def test_what_a_killed_agent_left_half_written_is_removed_by_the_next_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys, threading; from pathlib import Path; from deployx_agent.actions import placing\n"
        "from deployx_agent.limits import Limits\n"
        "folder = placing.open_folder(sys.argv[1], create=False, follow_links=False, limits=Limits())\n"
        "folder.place('a', Path(sys.argv[2]), placing.Rights(None, None, None), overwrite=True, backup=False,"
        " stopped=threading.Event())"
    )
    os.truncate(place.source, 2_000_000_000)  # sparse: reading it takes a while, and no room here
    (place.folder / "a").write_text("old")
    running = subprocess.Popen([sys.executable, "-c", script, str(place.folder), str(place.source)])
    while len(place.names()) < 2 and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert (place.folder / "a").read_text() == "old"
    assert len(place.names()) == 2
    monkeypatch.setattr(placing, "ABANDONED_AFTER_SECONDS", -1)
    folder = open_folder(str(place.folder), create=False, follow_links=False, limits=Limits())
    folder.tidy()
    folder.close()
    assert place.names() == ["a"]


@needs_root
def test_a_full_disk_is_said_and_leaves_what_was_there(place: Place) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place.folder)], check=True)
    try:
        (place.folder / "a").write_text("old")
        place.source.write_bytes(b"x" * 200_000)
        with pytest.raises(CannotPlace, match="the disk is full"):
            place.put()
        assert (place.names(), (place.folder / "a").read_text()) == (["a"], "old")
    finally:
        subprocess.run(["umount", str(place.folder)], check=True)


@needs_root
def test_a_read_only_target_is_said(place: Place) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place.folder)], check=True)
    try:
        with pytest.raises(CannotPlace, match="the file system is read-only"):
            place.put()
    finally:
        subprocess.run(["umount", str(place.folder)], check=True)


@needs_root
def test_an_owner_and_setuid_are_given_where_the_limits_allow(place: Place) -> None:
    with pytest.raises(CannotPlace, match="setuid or setgid bit"):
        Rights.of("4755", None, Limits())
    assert place.put(rights=Rights.of("4755", "daemon:daemon", Limits(allow_setuid=True)))
    found = (place.folder / "a").stat()
    assert (found.st_mode & 0o7777, found.st_uid != 0, found.st_gid != 0) == (0o4755, True, True)
    assert place.put(rights=Rights.of("0600", ":root", Limits()))
    assert (place.folder / "a").stat().st_gid == 0
    for owner in ("nobody-there", "daemon:no-group-there"):
        with pytest.raises(CannotPlace, match="does not exist on this device"):
            Rights.of(None, owner, Limits())


def test_nothing_is_put_into_the_agents_own_folder_by_whatever_way(place: Place, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(place.folder)
    (place.folder / "deeper").mkdir()
    for path, follow in ((place.folder, False), (place.folder / "deeper", False), (tmp_path / "way", True)):
        with pytest.raises(CannotPlace, match="is in the agent's own folder"):
            open_folder(str(path), create=True, follow_links=follow, limits=OPEN, own_folder=place.folder)


def test_backups_are_put_back_in_reverse_and_gone_after_a_success(place: Place) -> None:
    (place.folder / "a").write_text("old")
    folder = open_folder(str(place.folder), create=False, follow_links=False, limits=Limits())
    options: dict[str, Any] = {"overwrite": True, "backup": True, "stopped": threading.Event()}
    for name in ("a", "b", "a"):
        folder.place(name, place.source, USUAL, **options)
    assert len(place.names()) == 4
    folder.undo()
    assert (place.names(), (place.folder / "a").read_text()) == (["a"], "old")
    folder.place("a", place.source, USUAL, **options)
    folder.commit()
    folder.close()
    assert (place.names(), (place.folder / "a").read_text()) == (["a"], "new")
