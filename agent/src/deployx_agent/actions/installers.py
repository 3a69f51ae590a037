"""What is run on the device for each kind of installer: command lines, as the vendors document them. Pure.

Names of packages are values of their own in these lists, after `--` where the program knows it, never part of a text.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Which = Callable[[str], str | None]

APT_OPTIONS = (
    "-y", "-q", "-o", "DPkg::Lock::Timeout=600", "-o", "Dpkg::Options::=--force-confdef", "-o",
    "Dpkg::Options::=--force-confold",
)  # fmt: skip
"""apt-get(8), dpkg(1): wait for another one's lock, and never ask about configuration files."""
POWERSHELL = (
    "powershell.exe", "-NoLogo", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass",
)  # fmt: skip
QUIET = {"DEBIAN_FRONTEND": "noninteractive", "HOMEBREW_NO_AUTO_UPDATE": "1"}


@dataclass(frozen=True, slots=True)
class Manager:
    """A package manager: how it installs, removes, and tells whether a package is there; `%` stands for the package."""

    program: str
    install: tuple[str, ...]
    remove: tuple[str, ...]
    present: tuple[str, ...]
    refresh: tuple[str, ...] = field(default=())
    """What makes it know packages that it does not know yet."""

    def line(self, template: Sequence[str], package: str) -> list[str]:
        return [package if part == "%" else part for part in template]


MANAGERS: dict[str, tuple[Manager, ...]] = {
    "linux": (
        Manager(
            "apt-get",
            ("apt-get", "install", *APT_OPTIONS, "--no-install-recommends", "--", "%"),
            ("apt-get", "remove", *APT_OPTIONS, "--", "%"),
            ("dpkg-query", "-W", "-f=${db:Status-Status}", "--", "%"),
            ("apt-get", "update", "-q"),
        ),
        Manager(
            "dnf", ("dnf", "install", "-y", "--", "%"), ("dnf", "remove", "-y", "--", "%"), ("rpm", "-q", "--", "%")
        ),
        Manager(
            "zypper",
            ("zypper", "--non-interactive", "install", "--", "%"),
            ("zypper", "--non-interactive", "remove", "--", "%"),
            ("rpm", "-q", "--", "%"),
        ),
    ),
    "macos": (
        Manager(
            "brew", ("brew", "install", "--", "%"), ("brew", "uninstall", "--", "%"),
            ("brew", "list", "--versions", "--", "%"),
        ),
    ),
    "windows": (
        Manager(
            "winget",
            ("winget", "install", "--id", "%", "--exact", "--silent", "--accept-package-agreements",
             "--accept-source-agreements", "--disable-interactivity"),
            ("winget", "uninstall", "--id", "%", "--exact", "--silent", "--disable-interactivity"),
            ("winget", "list", "--id", "%", "--exact", "--accept-source-agreements", "--disable-interactivity"),
        ),
        Manager(
            "choco",
            ("choco", "install", "%", "-y", "--no-progress"),
            ("choco", "uninstall", "%", "-y", "--no-progress"),
            ("choco", "list", "%", "--exact", "--limit-output"),
        ),
    ),
}  # fmt: skip
"""Of each system, in the order in which they are looked for."""

ANSWERS_BY_OUTPUT = frozenset({"choco"})
"""Managers whose query ends with 0 in any case, and prints nothing for what is not there."""


def manager(system: str, which: Which = shutil.which) -> Manager | None:
    """The package manager that this device has; None where it has none of those known."""
    return next((one for one in MANAGERS.get(system, ()) if which(one.program)), None)


def install_line(kind: str, path: str, which: Which = shutil.which) -> list[str] | None:
    """What installs a fetched file of this kind; None for a kind that says itself how (`install_command`)."""
    match kind:
        case "deb" if which("apt-get"):
            return ["apt-get", "install", *APT_OPTIONS, "--no-install-recommends", "--allow-downgrades", "--", path]
        case "deb":
            return ["dpkg", "--install", "--force-confdef", "--force-confold", "--", path]
        case "rpm" if which("dnf"):
            return ["dnf", "install", "-y", "--", path]
        case "rpm" if which("zypper"):
            return ["zypper", "--non-interactive", "install", "--allow-unsigned-rpm", "--", path]
        case "rpm":
            return ["rpm", "--upgrade", "--", path]
        case "msi":
            return ["msiexec.exe", "/i", path, "/qn", "/norestart"]
        case "pkg":
            return ["/usr/sbin/installer", "-pkg", path, "-target", "/"]
        case "sh":
            return ["sh", path]
        case "ps1":
            return [*POWERSHELL, "-File", path]
        case "exe":
            return [path]
        case _:
            return None


def uninstall_line(kind: str, package: str, which: Which = shutil.which) -> list[str] | None:
    """What removes a package that a file of this kind installed; None for a kind that cannot tell."""
    match kind:
        case "deb" if which("apt-get"):
            return ["apt-get", "remove", *APT_OPTIONS, "--", package]
        case "deb":
            return ["dpkg", "--remove", "--", package]
        case "rpm" if which("dnf"):
            return ["dnf", "remove", "-y", "--", package]
        case "rpm" if which("zypper"):
            return ["zypper", "--non-interactive", "remove", "--", package]
        case "rpm":
            return ["rpm", "--erase", "--", package]
        case "msi":
            return ["msiexec.exe", "/x", package, "/qn", "/norestart"]
        case _:
            return None
