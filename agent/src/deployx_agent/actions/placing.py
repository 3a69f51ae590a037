"""Puts files into a folder, so that nobody ever sees half of one, and takes them back. Blocks; run it in a thread.

A file is written beside its name, synced, and renamed over it. Where the system can, the folder is held open while its
path is walked, so that a link planted meanwhile leads nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deployx_agent.limits import Limits

PIECE_BYTES = 4 * 1024 * 1024
ABANDONED_AFTER_SECONDS = 3600.0
LONGEST_NAME_BYTES = 255
_BESIDE = re.compile(r"\.deployx-[0-9a-f]{16}")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_WINDOWS_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
_CAN_WALK = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")


class CannotPlace(Exception):
    """A file cannot be put there; the sentence says why. What was there is left as it was."""


class Stopped(Exception):
    """The order was stopped while a file was written."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What a placed file gets; None: what the file there had, or the usual."""

    mode: int | None
    uid: int | None
    gid: int | None

    @classmethod
    def of(cls, mode: str | None, owner: str | None, limits: Limits) -> Rights:
        """Read them as the order gives them. Raises CannotPlace."""
        bits = None if mode is None else int(mode, 8)
        if bits is not None and bits & 0o6000 and not limits.allow_setuid:
            raise CannotPlace(f"The mode {mode} has the setuid or setgid bit, which this device's limits do not allow.")
        if owner is None:
            return cls(bits, None, None)
        return cls(bits, *_ids_of(owner))


def check_name(name: str) -> None:
    """Raise CannotPlace for a name that is no name of one file in a folder: names are data, never a path."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise CannotPlace(f"The name {name!r} is no file name: it is empty, dots, or holds a separator.")
    if len(os.fsencode(name)) > LONGEST_NAME_BYTES:
        raise CannotPlace(f"The name {name[:40]!r}… is longer than {LONGEST_NAME_BYTES} bytes.")
    if sys.platform == "win32" and (
        _WINDOWS_RESERVED.fullmatch(name) or set(name) & set('<>:"|?*') or name[-1] in ". "
    ):
        raise CannotPlace(f"The name {name!r} is not possible on Windows.")


def check_path(path: str) -> None:
    """Raise CannotPlace unless the path is an absolute one of this system."""
    if sys.platform == "win32":
        if not _WINDOWS_PATH.match(path):
            raise CannotPlace(f"{path!r} is no absolute Windows path, and this device runs Windows.")
    elif _WINDOWS_PATH.match(path):
        raise CannotPlace(f"{path!r} is a Windows path, and this device does not run Windows.")
    elif not path.startswith("/"):
        raise CannotPlace(f"{path!r} is no absolute path: begin it with '/'.")
    if ".." in re.split(r"[\\/]", path):
        raise CannotPlace(f"{path!r} holds '..': write the folder itself.")


@dataclass(slots=True)
class Folder:
    """A folder to put files into; `fd` is set where the system can work relative to an open folder."""

    path: str
    limits: Limits
    follow_links: bool
    fd: int | None = None
    own_folder: Path | None = None
    _placed: list[tuple[str, str | None]] = field(default_factory=list)
    _elsewhere: list[Folder] = field(default_factory=list)

    def place(
        self, name: str, source: Path, rights: Rights, *, overwrite: bool, backup: bool, stopped: threading.Event
    ) -> bool:
        """Put a copy of `source` under `name`; False where one is there that is to stay. Raises CannotPlace."""
        with _in_words(self.path, name):
            if self.follow_links and os.path.islink(os.path.join(self.path, name)):
                folder, name = self._follow(name)
                return folder.place(name, source, rights, overwrite=overwrite, backup=backup, stopped=stopped)
            before = self._look(name)
            if before is not None and not overwrite:
                return False
            beside = self._beside(name)
            try:
                self._write(beside, source, _completed(rights, before), stopped)
                kept = self._keep(name) if backup and before is not None else None
                os.replace(self._at(beside), self._at(name), **self._both())
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(self._at(beside), **self._one())
                raise
            if backup:
                self._placed.append((name, kept))
            self._sync()
            return True

    def _follow(self, name: str) -> tuple[Folder, str]:
        """The folder and the name that a link leads to."""
        target = os.path.realpath(os.path.join(self.path, name))
        folder = open_folder(
            os.path.dirname(target), create=False, follow_links=True, limits=self.limits, own_folder=self.own_folder
        )
        self._elsewhere.append(folder)
        return folder, os.path.basename(target)

    def undo(self) -> None:
        """Put back what was there before, newest first; only what was placed with a backup."""
        for folder in self._elsewhere:
            folder.undo()
        while self._placed:
            name, kept = self._placed.pop()
            with _in_words(self.path, name):
                if kept is None:
                    os.unlink(self._at(name), **self._one())
                else:
                    os.replace(self._at(kept), self._at(name), **self._both())
                self._sync()

    def commit(self) -> None:
        """Remove the backups: the run has succeeded."""
        for folder in self._elsewhere:
            folder.commit()
        while self._placed:
            _, kept = self._placed.pop()
            if kept is not None:
                with contextlib.suppress(OSError):
                    os.unlink(self._at(kept), **self._one())

    def tidy(self) -> None:
        """Remove what an agent that was killed here left half-written."""
        for name in os.listdir(self.path if self.fd is None else self.fd):
            if _BESIDE.search(name) and name.startswith("."):
                with contextlib.suppress(OSError):
                    found = os.stat(self._at(name), follow_symlinks=False, **self._one())
                    if time.time() - found.st_mtime > ABANDONED_AFTER_SECONDS:
                        os.unlink(self._at(name), **self._one())

    def close(self) -> None:
        for folder in self._elsewhere:
            folder.close()
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def _look(self, name: str) -> os.stat_result | None:
        """What is there under the name; only a plain file may be replaced."""
        try:
            found = os.stat(self._at(name), follow_symlinks=False, **self._one())
        except FileNotFoundError:
            return None
        what = os.path.join(self.path, name)
        if stat.S_ISLNK(found.st_mode):
            raise CannotPlace(f"{what!r} is a link, which is not followed without follow_links.")
        if stat.S_ISDIR(found.st_mode):
            raise CannotPlace(f"{what!r} is a folder: it is not replaced by a file.")
        if not stat.S_ISREG(found.st_mode):
            raise CannotPlace(f"{what!r} is no plain file: it is not replaced.")
        return found

    def _write(self, beside: str, source: Path, rights: Rights, stopped: threading.Event) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(self._at(beside), flags, 0o600, **self._one())
        with os.fdopen(handle, "wb") as file, source.open("rb") as content:
            while _copy_piece(content.fileno(), file.fileno()):
                if stopped.is_set():
                    raise Stopped
            if sys.platform != "win32":
                if rights.uid is not None or rights.gid is not None:
                    uid, gid = (-1 if one is None else one for one in (rights.uid, rights.gid))
                    os.fchown(file.fileno(), uid, gid)
                os.fchmod(
                    file.fileno(), 0o644 if rights.mode is None else rights.mode
                )  # after chown, which clears bits
            os.fsync(file.fileno())

    def _keep(self, name: str) -> str:
        """A second name for what is there, so that its own name never stands for nothing."""
        kept = f".{name[:100]}.deployx-backup-{secrets.token_hex(8)}"
        try:
            os.link(self._at(name), self._at(kept), follow_symlinks=False, **self._both())
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            opener = (lambda at, flags: os.open(at, flags, 0o600, **self._one())) if self.fd is not None else None
            with open(self._at(name), "rb", opener=opener) as old, open(self._at(kept), "xb", opener=opener) as new:
                shutil.copyfileobj(old, new)
                os.fsync(new.fileno())
        return kept

    def _beside(self, name: str) -> str:
        return f".{name[:100]}.deployx-{secrets.token_hex(8)}"

    def _at(self, name: str) -> str:
        return name if self.fd is not None else os.path.join(self.path, name)

    def _one(self) -> dict[str, int]:
        return {} if self.fd is None else {"dir_fd": self.fd}

    def _both(self) -> dict[str, int]:
        return {} if self.fd is None else {"src_dir_fd": self.fd, "dst_dir_fd": self.fd}

    def _sync(self) -> None:
        if self.fd is not None:
            os.fsync(self.fd)


if sys.platform == "linux":

    def _copy_piece(source: int, target: int) -> int:
        """Copy the next piece within the kernel, by reference where the file system can; answers its size."""
        try:
            return os.copy_file_range(source, target, PIECE_BYTES)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            return _write_piece(source, target)

else:

    def _copy_piece(source: int, target: int) -> int:
        return _write_piece(source, target)


def _write_piece(source: int, target: int) -> int:
    piece = os.read(source, PIECE_BYTES)
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(target, rest) :]
    return len(piece)


def open_folder(
    path: str, *, create: bool, follow_links: bool, limits: Limits, own_folder: Path | None = None
) -> Folder:
    """Open the folder, made if it is to be. Raises CannotPlace where a part is missing, no folder, or a link.

    Nothing is put into the agent's `own_folder`: there are its key and its limits.
    """
    check_path(path)
    if follow_links:
        path = os.path.realpath(path)
        limits.check_path(path)
    own = None if own_folder is None else own_folder.resolve()
    if own is not None and own in (Path(os.path.realpath(path)), *Path(os.path.realpath(path)).parents):
        raise CannotPlace(f"{path!r} is in the agent's own folder, into which nothing is put.")
    with _in_words(path, None):
        if not _CAN_WALK:
            return _checked_folder(path, create=create, follow_links=follow_links, limits=limits, own_folder=own_folder)
        handle = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        try:
            walked = ""
            for part in [one for one in path.split("/") if one not in ("", ".")]:
                walked = f"{walked}/{part}"
                deeper = _step_into(handle, part, walked, path, create=create)
                os.close(handle)
                handle = deeper
        except BaseException:
            os.close(handle)
            raise
        return Folder(path, limits, follow_links, handle, own_folder)


def _step_into(handle: int, part: str, walked: str, path: str, *, create: bool) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        return os.open(part, flags, dir_fd=handle)
    except FileNotFoundError:
        if not create:
            raise CannotPlace(_missing(path, walked)) from None
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, 0o755, dir_fd=handle)
        return os.open(part, flags, dir_fd=handle)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
            raise
        is_link = stat.S_ISLNK(os.stat(part, dir_fd=handle, follow_symlinks=False).st_mode)
        raise CannotPlace(_is_no_folder(path, walked, is_link=is_link)) from None


def _checked_folder(path: str, *, create: bool, follow_links: bool, limits: Limits, own_folder: Path | None) -> Folder:
    """Where no folder can be held open: each part is looked at before it is used."""
    for part in [*reversed(Path(path).parents), Path(path)]:
        if part.is_symlink():
            raise CannotPlace(_is_no_folder(path, str(part), is_link=True))
        if part.exists() and not part.is_dir():
            raise CannotPlace(_is_no_folder(path, str(part), is_link=False))
        if not part.exists():
            if not create:
                raise CannotPlace(_missing(path, str(part)))
            part.mkdir(exist_ok=True)
    return Folder(path, limits, follow_links, None, own_folder)


def _missing(path: str, walked: str) -> str:
    return f"The folder {path!r} does not exist on this device ({walked!r} is missing), and it is not to be created."


def _is_no_folder(path: str, walked: str, *, is_link: bool) -> str:
    what = "a link, which is not followed without follow_links" if is_link else "no folder"
    return f"{path!r} cannot be used: {walked!r} is {what}."


@contextlib.contextmanager
def _in_words(path: str, name: str | None) -> Iterator[None]:
    """Say what the system's errors mean here."""
    what = path if name is None else os.path.join(path, name)
    try:
        yield
    except OSError as error:
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT:
                why = "the disk is full"
            case errno.EROFS:
                why = "the file system is read-only"
            case errno.EACCES | errno.EPERM:
                why = "the agent's user may not write there"
            case errno.ETXTBSY:
                why = "it is a program that runs"
            case _:
                why = error.strerror or str(error)
        raise CannotPlace(f"{what!r} cannot be written: {why}.") from None


def _completed(rights: Rights, before: os.stat_result | None) -> Rights:
    """A file that replaces another one keeps that one's mode and, where the agent may, its owner."""
    if before is None:
        return rights
    is_root = sys.platform != "win32" and os.geteuid() == 0
    return Rights(
        stat.S_IMODE(before.st_mode) & 0o777 if rights.mode is None else rights.mode,
        before.st_uid if rights.uid is None and is_root else rights.uid,
        before.st_gid if rights.gid is None and is_root else rights.gid,
    )


if sys.platform == "win32":

    def _ids_of(owner: str) -> tuple[int | None, int | None]:
        raise CannotPlace(f"The owner {owner!r} cannot be set on Windows: leave it out.")

else:
    import grp
    import pwd

    def _ids_of(owner: str) -> tuple[int | None, int | None]:
        """User and group of "user", "user:group" or ":group"; a user alone keeps the group as it is."""
        user, _, group = owner.partition(":")
        try:
            uid = pwd.getpwnam(user).pw_uid if user else None
        except KeyError:
            raise CannotPlace(f"The user {user!r} of the owner {owner!r} does not exist on this device.") from None
        try:
            gid = grp.getgrnam(group).gr_gid if group else None
        except KeyError:
            raise CannotPlace(f"The group {group!r} of the owner {owner!r} does not exist on this device.") from None
        if os.geteuid() != 0 and uid not in (None, os.geteuid()):
            raise CannotPlace(f"The agent is not root, so it cannot give files to {owner!r}.")
        return uid, gid
