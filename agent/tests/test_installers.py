"""The command lines of installers, and their quoting on Windows, read back by parsers of the documented rules."""

from __future__ import annotations

import os
import random
import subprocess

import pytest

from deployx_agent.actions.installers import MANAGERS, install_line, manager, uninstall_line
from deployx_agent.actions.software import normalised

APT = [
    "-y", "-q", "-o", "DPkg::Lock::Timeout=600", "-o", "Dpkg::Options::=--force-confdef", "-o",
    "Dpkg::Options::=--force-confold",
]  # fmt: skip
POWERSHELL = ["powershell.exe", "-NoLogo", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass"]


def has(*programs: str) -> object:
    return lambda name: f"/usr/bin/{name}" if name in programs else None


@pytest.mark.parametrize(
    ("kind", "programs", "install", "uninstall"),
    [
        ("deb", ["apt-get"],
         ["apt-get", "install", *APT, "--no-install-recommends", "--allow-downgrades", "--", "/x/f"],
         ["apt-get", "remove", *APT, "--", "p"]),
        ("deb", [], ["dpkg", "--install", "--force-confdef", "--force-confold", "--", "/x/f"],
         ["dpkg", "--remove", "--", "p"]),
        ("rpm", ["dnf", "zypper"], ["dnf", "install", "-y", "--", "/x/f"], ["dnf", "remove", "-y", "--", "p"]),
        ("rpm", ["zypper"], ["zypper", "--non-interactive", "install", "--allow-unsigned-rpm", "--", "/x/f"],
         ["zypper", "--non-interactive", "remove", "--", "p"]),
        ("rpm", [], ["rpm", "--upgrade", "--", "/x/f"], ["rpm", "--erase", "--", "p"]),
        ("msi", [], ["msiexec.exe", "/i", "/x/f", "/qn", "/norestart"],
         ["msiexec.exe", "/x", "p", "/qn", "/norestart"]),
        ("pkg", [], ["/usr/sbin/installer", "-pkg", "/x/f", "-target", "/"], None),
        ("sh", [], ["sh", "/x/f"], None),
        ("ps1", [], [*POWERSHELL, "-File", "/x/f"], None),
        ("exe", [], ["/x/f"], None),
        ("archive", [], None, None),
    ],
)  # fmt: skip
def test_each_kind_is_installed_and_removed_by_its_vendors_line(
    kind: str, programs: list[str], install: list[str] | None, uninstall: list[str] | None
) -> None:
    which = has(*programs)
    assert install_line(kind, "/x/f", which) == install  # type: ignore[arg-type]
    assert uninstall_line(kind, "p", which) == uninstall  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("system", "programs", "line"),
    [
        ("linux", ["apt-get", "dnf"], ["apt-get", "install", *APT, "--no-install-recommends", "--", "jq"]),
        ("linux", ["dnf"], ["dnf", "install", "-y", "--", "jq"]),
        ("linux", ["zypper"], ["zypper", "--non-interactive", "install", "--", "jq"]),
        ("macos", ["brew"], ["brew", "install", "--", "jq"]),
        ("windows", ["winget", "choco"],
         ["winget", "install", "--id", "jq", "--exact", "--silent", "--accept-package-agreements",
          "--accept-source-agreements", "--disable-interactivity"]),
        ("windows", ["choco"], ["choco", "install", "jq", "-y", "--no-progress"]),
        ("linux", [], None),
    ],
)  # fmt: skip
def test_a_package_goes_through_the_first_manager_that_the_device_has(
    system: str, programs: list[str], line: list[str] | None
) -> None:
    found = manager(system, has(*programs))  # type: ignore[arg-type]
    assert (found.line(found.install, "jq") if found else None) == line


def test_no_package_name_is_read_as_an_option_where_the_manager_knows_an_end_of_options() -> None:
    for one in MANAGERS["linux"] + MANAGERS["macos"]:
        for template in (one.install, one.remove, one.present):
            assert template[-2:] == ("--", "%")


def test_architectures_have_one_name_each() -> None:
    assert [normalised(name) for name in ("AMD64", "x86_64", "aarch64", "arm64", "i686", "armhf", "riscv64")] == [
        "x86_64", "x86_64", "arm64", "arm64", "x86", "armv7l", "riscv64",
    ]  # fmt: skip


def by_the_c_runtime(line: str) -> list[str]:
    """Microsoft, "Parsing C command-line arguments": the rules for arguments after the program's name."""
    arguments, place = [], 0
    while place < len(line):
        if line[place] in " \t":
            place += 1
            continue
        argument, quoted = "", False
        while place < len(line) and (quoted or line[place] not in " \t"):
            slashes = 0
            while place < len(line) and line[place] == "\\":
                slashes, place = slashes + 1, place + 1
            if place < len(line) and line[place] == '"':
                argument += "\\" * (slashes // 2)
                if slashes % 2:
                    argument += '"'
                elif quoted and line[place + 1 : place + 2] == '"':
                    argument, place = argument + '"', place + 1
                else:
                    quoted = not quoted
                place += 1
            else:
                argument += "\\" * slashes
                if place < len(line) and (quoted or line[place] not in " \t"):
                    argument, place = argument + line[place], place + 1
        arguments.append(argument)
    return arguments


def test_what_windows_programs_read_is_what_was_given() -> None:
    seed = int(os.environ.get("DEPLOYX_TEST_SEED") or random.randrange(10**6))
    print("seed", seed)
    rng = random.Random(seed)
    assert by_the_c_runtime(r'a\\b d"e f"g h') == ["a\\\\b", "de fg", "h"]  # Microsoft's own examples
    assert by_the_c_runtime(r"a\\\"b c d") == ['a\\"b', "c", "d"]
    for _ in range(20_000):
        given = ["".join(rng.choices('ab \\"\t^%&', k=rng.randrange(0, 9))) for _ in range(rng.randrange(1, 4))]
        assert by_the_c_runtime(subprocess.list2cmdline(given)) == given, given
