"""Asks the device's own package tools what a file contains and what is installed. Changes nothing."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from deployx_agent.actions.installers import ANSWERS_BY_OUTPUT, Manager

ANSWERS_WITHIN_SECONDS = 120.0
TOLD_BY_FILE = frozenset({"deb", "rpm", "msi", "pkg"})
"""Kinds of which the file says what it installs, and the system whether that is there."""

_RPM_VERSION = re.compile(r"[A-Za-z0-9.+~^_:-]+")
_MSI_INSTALLED = 5


class CannotTell(Exception):
    """The device's tools do not answer; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Package:
    """What a file installs: the name by which the system knows it, and the version."""

    name: str
    version: str


async def ask(*argv: str) -> tuple[int, str]:
    """Run a short query; answers its exit code and what it printed. Raises CannotTell."""
    try:
        asked = await asyncio.create_subprocess_exec(
            *argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except OSError as error:
        raise CannotTell(f"{argv[0]} cannot be asked: {error.strerror}.") from None
    try:
        async with asyncio.timeout(ANSWERS_WITHIN_SECONDS):
            printed, _ = await asked.communicate()
    except TimeoutError:
        asked.kill()
        await asked.wait()
        raise CannotTell(f"{argv[0]} did not answer within {ANSWERS_WITHIN_SECONDS:.0f} s.") from None
    return asked.returncode or 0, printed.decode(errors="replace").strip()


async def package_in(kind: str, path: Path) -> Package:
    """What the file of this kind installs. Raises CannotTell."""
    match kind:
        case "deb":
            code, said = await ask("dpkg-deb", "--show", "--showformat=${Package}\n${Version}", str(path))
        case "rpm":
            code, said = await ask("rpm", "-qp", "--queryformat", "%{NAME}\n%{EVR}", str(path))
        case "pkg":
            return await _in_pkg(path)
        case _:
            return await asyncio.to_thread(_in_msi, path)
    name, _, version = said.partition("\n")
    if code != 0 or not name or not version:
        raise CannotTell(f"{path.name!r} is no {kind} package, or a broken one.")
    return Package(name, version)


async def is_there(kind: str, package: Package, *, in_version: bool) -> bool:
    """Whether the package is installed; with `in_version`, in its version or a newer one."""
    match kind:
        case "deb":
            code, said = await ask("dpkg-query", "-W", "-f=${db:Status-Status}\n${Version}", "--", package.name)
            status, _, version = said.partition("\n")
            if code != 0 or status != "installed" or not in_version:
                return code == 0 and status == "installed"
            return (await ask("dpkg", "--compare-versions", version, "ge", package.version))[0] == 0
        case "rpm":
            code, version = await ask("rpm", "-q", "--queryformat", "%{EVR}", "--", package.name)
            return code == 0 and (not in_version or await _is_rpm_newer(version, package.version))
        case "pkg":
            code, said = await ask("pkgutil", "--pkg-info", package.name)
            return code == 0 and (not in_version or f"version: {package.version}" in said.splitlines())
        case _:
            return await asyncio.to_thread(_is_msi_there, package.name)


async def is_package_there(manager: Manager, name: str) -> bool:
    """Whether the manager's package is installed."""
    code, said = await ask(*manager.line(manager.present, name))
    if manager.program == "apt-get":
        return code == 0 and said == "installed"
    return code == 0 and (bool(said) or manager.program not in ANSWERS_BY_OUTPUT)


async def _is_rpm_newer(installed: str, wanted: str) -> bool:
    if not _RPM_VERSION.fullmatch(installed) or not _RPM_VERSION.fullmatch(wanted):
        raise CannotTell(f"{wanted[:100]!r} is no version of an rpm package.")
    _, said = await ask("rpm", "--eval", f'%{{lua:print(rpm.vercmp("{installed}", "{wanted}"))}}')
    return said in ("0", "1")


async def _in_pkg(path: Path) -> Package:
    with tempfile.TemporaryDirectory() as folder:
        expanded = Path(folder) / "expanded"
        code, _ = await ask("pkgutil", "--expand", str(path), str(expanded))
        if code != 0:
            raise CannotTell(f"{path.name!r} is no package of macOS, or a broken one.")
        for found in sorted(expanded.rglob("PackageInfo")):
            info = ElementTree.parse(found).getroot()
            name, version = info.get("identifier"), info.get("version")
            if name and version:
                return Package(name, version)
    raise CannotTell(f"{path.name!r} does not tell its package identifier.")


if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    def _in_msi(path: Path) -> Package:
        """The product code, from the package's property table (MsiGetProductPropertyW)."""
        msi, handle = ctypes.windll.msi, wintypes.ULONG()
        ignore_machine_state = 1  # MSIOPENPACKAGEFLAGS_IGNOREMACHINESTATE
        if msi.MsiOpenPackageExW(str(path), ignore_machine_state, ctypes.byref(handle)) != 0:
            raise CannotTell(f"{path.name!r} is no Windows Installer package, or a broken one.")
        try:
            found = []
            for name in ("ProductCode", "ProductVersion"):
                size = wintypes.DWORD(256)
                value = ctypes.create_unicode_buffer(size.value)
                if msi.MsiGetProductPropertyW(handle, name, value, ctypes.byref(size)) != 0:
                    raise CannotTell(f"{path.name!r} does not tell its {name}.")
                found.append(value.value)
            return Package(*found)
        finally:
            msi.MsiCloseHandle(handle)

    def _is_msi_there(product_code: str) -> bool:
        return int(ctypes.windll.msi.MsiQueryProductStateW(product_code)) == _MSI_INSTALLED

else:

    def _in_msi(path: Path) -> Package:
        raise CannotTell(f"{path.name!r} is for Windows, which this device does not run.")

    def _is_msi_there(product_code: str) -> bool:
        raise CannotTell(f"{product_code!r} is for Windows, which this device does not run.")
