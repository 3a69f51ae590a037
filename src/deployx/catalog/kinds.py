"""Kinds of installers: which system each is for, and what the parts of an installer may look like. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field

SYSTEMS = ("linux", "windows", "macos")
LONGEST_URL = 2000


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of installer; one that `needs_command` cannot be run without being told how."""

    name: str
    systems: tuple[str, ...]
    needs_command: bool = False


KINDS = {
    one.name: one
    for one in (
        Kind("deb", ("linux",)),
        Kind("rpm", ("linux",)),
        Kind("msi", ("windows",)),
        Kind("exe", ("windows",), needs_command=True),
        Kind("pkg", ("macos",)),
        Kind("sh", ("linux", "macos")),
        Kind("ps1", ("windows",)),
        Kind("archive", SYSTEMS, needs_command=True),
        Kind("package", SYSTEMS),
    )
}
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_SUFFIXES = {f".{name}": name for name in ("deb", "rpm", "msi", "exe", "pkg", "sh", "ps1")} | dict.fromkeys(
    _ARCHIVES, "archive"
)


def kind_of_url(url: str) -> Kind | None:
    """The kind that the end of an address's path tells; None where it tells none."""
    name = unquote(urlsplit(url).path).rpartition("/")[2].lower()
    found = next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix) and name != suffix), None)
    return KINDS[found] if found else None


def _web_address(value: str) -> str:
    try:
        parts = urlsplit(value)
        host, _port = parts.hostname, parts.port
    except ValueError:
        parts, host = None, None
    if parts is None or parts.scheme not in ("http", "https") or not host or not value.isprintable() or " " in value:
        raise ValueError(f"{value[:100]!r} is no address that an agent fetches: use https://… or http://…")
    if "@" in parts.netloc:
        raise ValueError("the address holds a user or password, which everybody who reads it would see: leave it out")
    return value


def _lower(value: str) -> str:
    return value.lower()


InstallerUrl = Annotated[str, Field(max_length=LONGEST_URL), AfterValidator(_web_address)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$"), AfterValidator(_lower)]
PackageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9+._:@/-]{0,199}$")]
