"""Archives are unpacked into their folder or refused whole."""

from __future__ import annotations

import io
import os
import random
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deployx_agent.actions import archive
from deployx_agent.actions.archive import BadArchive, unpack


def tar_of(path: Path, *members: tarfile.TarInfo, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as made:  # type: ignore[call-overload]
        for member in members:
            made.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def member(name: str, size: int = 1, **changes: object) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size = size
    for attribute, value in changes.items():
        setattr(found, attribute, value)
    return found


def opened(path: Path, tmp_path: Path) -> Path:
    into = tmp_path / "into"
    unpack(path, into, threading.Event())
    return into


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_a_tar_is_unpacked_with_its_executables_and_no_more_rights(mode: str, tmp_path: Path) -> None:
    made = tar_of(tmp_path / "a", member("d/run", mode=0o4777), member("d/e/text", mode=0o600), mode=mode)
    into = opened(made, tmp_path)
    assert {str(path.relative_to(into)) for path in into.rglob("*")} == {"d", "d/run", "d/e", "d/e/text"}
    assert [stat.S_IMODE((into / "d" / name).stat().st_mode) for name in ("run", "e/text")] == [0o755, 0o644]


def test_a_zip_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("d/", "")
        made.writestr("d/a.txt", "text")
    assert (opened(tmp_path / "a.zip", tmp_path) / "d/a.txt").read_text() == "text"


def _zip_link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(info, "/etc/passwd")
    return path


def _zip_out(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("..\\..\\evil", "x")
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: tar_of(path, member("/etc/evil")), "'/etc/evil' leads out of its folder"),
        (lambda path: tar_of(path, member("a"), member("b/../../evil")), "leads out of its folder"),
        (lambda path: tar_of(path, member("C:evil")), "'C:evil' leads out of its folder"),
        (lambda path: tar_of(path, member("l", 0, type=tarfile.SYMTYPE, linkname="/etc")), "is no plain file"),
        (lambda path: tar_of(path, member("l", 0, type=tarfile.LNKTYPE, linkname="a")), "is no plain file"),
        (lambda path: tar_of(path, member("d", 0, type=tarfile.CHRTYPE)), "is no plain file or folder"),
        (lambda path: tar_of(path, member("f", 0, type=tarfile.FIFOTYPE)), "is no plain file or folder"),
        (lambda path: tar_of(path, member("a"), member("a")), "has 'a' twice"),
        (_zip_link, "'link' is no plain file or folder"),
        (_zip_out, "leads out of its folder"),
    ],
)  # fmt: skip
def test_an_evil_archive_is_refused_and_leaves_nothing(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    path = make(tmp_path / "evil")
    with pytest.raises(BadArchive) as refused:
        opened(path, tmp_path)
    assert said in str(refused.value)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["evil"]


def test_a_bomb_is_refused_by_entries_and_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = tar_of(tmp_path / "many", *(member(f"f{number}", 0) for number in range(20)))
    monkeypatch.setattr(archive, "ENTRIES_AT_MOST", 10)
    with pytest.raises(BadArchive, match="more than 10 entries"):
        opened(many, tmp_path)
    monkeypatch.setattr(archive, "RATIO_COUNTS_FROM_BYTES", 1000)
    large = tar_of(tmp_path / "large", member("zeros", 2_000_000))
    with pytest.raises(BadArchive, match="unpacks to more than"):
        opened(large, tmp_path)
    assert not (tmp_path / "into").exists()


def test_whatever_the_bytes_an_archive_is_unpacked_or_refused_and_stays_inside(tmp_path: Path) -> None:
    seed = int(os.environ.get("DEPLOYX_TEST_SEED") or random.randrange(10**6))
    print("seed", seed)
    rng = random.Random(seed)
    good = [tar_of(tmp_path / f"g{mode[2:]}", member("a", 50), member("d/b", 50), mode=mode) for mode in ("w", "w:gz")]
    with zipfile.ZipFile(tmp_path / "gz.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a", "text" * 50)
        made.writestr("d/b", "text")
    sources = [path.read_bytes() for path in [*good, tmp_path / "gz.zip"]]
    refused = unpacked = 0
    for number in range(600):
        damaged = bytearray(rng.choice(sources) if number % 10 else rng.randbytes(rng.randrange(2000)))
        for _ in range(rng.randrange(1, 6)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path = tmp_path / "damaged"
        path.write_bytes(damaged)
        into = tmp_path / "into" / str(number)
        try:
            unpack(path, into, threading.Event())
            unpacked += 1
        except (BadArchive, OSError):
            refused += 1
            assert not into.exists()
    assert (refused > 50, unpacked > 50) == (True, True)
    assert {one.name for one in tmp_path.iterdir()} <= {"g", "g:gz", "ggz", "gz.zip", "damaged", "into"}
