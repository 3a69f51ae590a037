"""What an order tells the device to do: commands, files or software. Pure; the protocol document names the fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from deployx_agent.fields import Fields, ProtocolError, short

STRATEGIES = ("transactional", "best_effort")
ACTIONS = ("install", "uninstall")
SYSTEMS = ("linux", "windows", "macos")
KINDS = ("deb", "rpm", "msi", "exe", "pkg", "sh", "ps1", "archive", "package")

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Step:
    """One command of an order, with what undoes it; or a restart of the device, where `run` is None."""

    index: int
    run: str | None
    rollback: str | None
    timeout_seconds: int

    @property
    def is_reboot(self) -> bool:
        return self.run is None


@dataclass(frozen=True, slots=True)
class CommandWork:
    """Commands to run, one after the other."""

    shell: str
    strategy: str
    stop_on_failure: bool
    steps: tuple[Step, ...]
    env: Mapping[str, str]
    working_directory: str | None
    run_as: str | None
    success_exit_codes: tuple[int, ...]
    output_limit_bytes: int


@dataclass(frozen=True, slots=True)
class FileRef:
    """A content to fetch, and its name; the name is data, not a path."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FileWork:
    """Files to put into a folder."""

    files: tuple[FileRef, ...]
    target_path: str
    create_path_if_not_exists: bool
    mode: str | None
    owner: str | None
    overwrite: bool
    backup: bool
    follow_links: bool
    timeout_seconds: int


@dataclass(frozen=True, slots=True)
class Installer:
    """One way to get a software onto one kind of system; exactly one of `file`, `url` and `package_name` is given."""

    os: str
    arch: str | None
    kind: str
    file: FileRef | None
    url: str | None
    sha256: str | None
    package_name: str | None
    install_command: str | None
    uninstall_command: str | None
    detect_command: str | None
    success_exit_codes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SoftwareItem:
    """One software, with its installers in the order of preference."""

    software_id: int | None
    name: str
    version: str | None
    installers: tuple[Installer, ...]


@dataclass(frozen=True, slots=True)
class SoftwareWork:
    """Software to install or remove, in this order."""

    action: str
    items: tuple[SoftwareItem, ...]
    timeout_seconds: int
    output_limit_bytes: int


Work = CommandWork | FileWork | SoftwareWork


def parse_work(kind: str, fields: Fields) -> Work:
    """Read the work of an order. Raises ProtocolError, also for a kind that this agent does not know."""
    match kind:
        case "command":
            return _command_work(fields)
        case "file_deployment":
            return _file_work(fields)
        case "software_deployment":
            return _software_work(fields)
        case _:
            raise ProtocolError(f"This agent cannot run orders of kind {kind[:40]!r}: update it.")


def _command_work(fields: Fields) -> CommandWork:
    return CommandWork(
        shell=fields.text("shell"),
        strategy=fields.one_of("strategy", STRATEGIES),
        stop_on_failure=fields.truth("stop_on_failure"),
        steps=tuple(_step(one) for one in fields.objects("steps")),
        env=fields.strings("env"),
        working_directory=fields.optional_text("working_directory"),
        run_as=fields.optional_text("run_as"),
        success_exit_codes=fields.numbers("success_exit_codes"),
        output_limit_bytes=fields.number("output_limit_bytes"),
    )


def _step(fields: Fields) -> Step:
    is_reboot = fields.has("reboot") and fields.truth("reboot")
    return Step(
        index=fields.number("index"),
        run=None if is_reboot else fields.text("run"),
        rollback=None if is_reboot else fields.optional_text("rollback"),
        timeout_seconds=fields.number("timeout_seconds", at_least=1),
    )


def _file_work(fields: Fields) -> FileWork:
    return FileWork(
        files=tuple(_file(one) for one in fields.objects("files")),
        target_path=fields.text("target_path"),
        create_path_if_not_exists=fields.truth("create_path_if_not_exists"),
        mode=fields.optional_text("mode"),
        owner=fields.optional_text("owner"),
        overwrite=fields.truth("overwrite"),
        backup=fields.truth("backup"),
        follow_links=fields.truth("follow_links"),
        timeout_seconds=fields.number("timeout_seconds", at_least=1),
    )


def _file(fields: Fields) -> FileRef:
    return FileRef(fields.text("name"), _digest(fields.text("sha256")), fields.number("size_bytes"))


def _digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise ProtocolError(f"{short(text)} is no SHA-256 digest: 64 hexadecimal digits")
    return text


def _software_work(fields: Fields) -> SoftwareWork:
    return SoftwareWork(
        action=fields.one_of("action", ACTIONS),
        items=tuple(_item(one) for one in fields.objects("items")),
        timeout_seconds=fields.number("timeout_seconds", at_least=1),
        output_limit_bytes=fields.number("output_limit_bytes"),
    )


def _item(fields: Fields) -> SoftwareItem:
    return SoftwareItem(
        software_id=fields.number("software_id", at_least=1) if fields.has("software_id") else None,
        name=fields.text("name"),
        version=fields.optional_text("version"),
        installers=tuple(_installer(one) for one in fields.objects("installers")),
    )


def _installer(fields: Fields) -> Installer:
    given = [name for name in ("file", "url", "package_name") if fields.has(name)]
    if len(given) != 1:
        raise ProtocolError(f"an installer names {' and '.join(given) or 'nothing'}: one of file, url, package_name")
    return Installer(
        os=fields.one_of("os", SYSTEMS),
        arch=fields.optional_text("arch"),
        kind=fields.one_of("kind", KINDS),
        file=_file(fields.object("file")) if fields.has("file") else None,
        url=fields.optional_text("url"),
        sha256=_digest(fields.text("sha256")) if fields.has("url") else None,
        package_name=fields.optional_text("package_name"),
        install_command=fields.optional_text("install_command"),
        uninstall_command=fields.optional_text("uninstall_command"),
        detect_command=fields.optional_text("detect_command"),
        success_exit_codes=fields.numbers("success_exit_codes"),
    )
