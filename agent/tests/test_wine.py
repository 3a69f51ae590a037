"""Batches for `cmd` through the agent's own command builder, by wine's `cmd.exe`; a long test."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployx_agent.shells import command_line

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("wine") is None, reason="Debian's package wine is not installed"),
]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Windows of its own in a folder, without a display."""
    folder = tmp_path_factory.mktemp("wine")
    environment = {
        **os.environ, "WINEPREFIX": str(folder / "prefix"), "WINEDEBUG": "-all", "DISPLAY": "", "WINEARCH": "win64",
        "WINEDLLOVERRIDES": "mscoree,mshtml=",
    }  # fmt: skip
    subprocess.run(["wine", "cmd", "/c", "exit 0"], env=environment, check=True, timeout=300, capture_output=True)
    yield environment
    subprocess.run(["wineserver", "-k"], env=environment, check=False, timeout=60)


class Windows:
    def __init__(self, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._environment = environment
        monkeypatch.setattr(shutil, "which", lambda name: "cmd.exe" if name == "cmd" else None)

    def run(self, command: str, **environment: str) -> tuple[int, str]:
        """Run as the agent does: cmd reads its own quoting from the raw line, so that is what wine is given."""
        line = command_line("cmd", command)
        arguments = " ".join(line.argv[1:])
        if line.script is not None:
            arguments = arguments.replace(str(line.script), "Z:" + str(line.script).replace("/", "\\"))
        wrapper = Path(self._environment["WINEPREFIX"]).parent / "line.bat"
        wrapper.write_text(f"@cmd.exe {arguments}\r\n@exit /b %ERRORLEVEL%\r\n", newline="")
        done = subprocess.run(
            ["wine", "cmd", "/c", "Z:" + str(wrapper).replace("/", "\\")], env={**self._environment, **environment},
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        line.discard()
        return done.returncode, done.stdout.decode().replace("\r\n", "\n")


@pytest.fixture
def windows(prefix: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Windows:
    return Windows(prefix, monkeypatch)


def test_quotes_and_spaces_reach_the_command(windows: Windows) -> None:
    assert windows.run('echo "a b" & echo c') == (0, '"a b" \nc\n')


def test_exit_codes_come_back(windows: Windows) -> None:
    assert [windows.run(f"exit {code}")[0] for code in (0, 1, 7)] == [0, 1, 7]


def test_variables_are_expanded_by_cmd(windows: Windows) -> None:
    assert windows.run("echo %DEPLOYX_DEVICE_NAME%", DEPLOYX_DEVICE_NAME="pc-7") == (0, "pc-7\n")


def test_several_lines_become_a_batch_file(windows: Windows) -> None:
    assert windows.run("set X=1\nif %X%==1 echo one\nexit 3") == (3, "one\n")


def test_the_nightly_cleanup_empties_the_folder_of_temporary_files(windows: Windows, tmp_path: Path) -> None:
    scratch = tmp_path / "temp"
    (scratch / "deep").mkdir(parents=True)
    for name in ("a.tmp", "b c.tmp", "deep/d.tmp"):
        (scratch / name).write_text("x")
    kept = tmp_path / "kept.txt"
    kept.write_text("x")
    temp = "Z:" + str(scratch).replace("/", "\\")
    for name in ("TEMP", "TMP"):  # wine takes these from its registry, not from the environment
        assert windows.run(f'reg add HKCU\\Environment /v {name} /d "{temp}" /f')[0] == 0
    code, _ = windows.run("del /q /f /s %TEMP%\\*")
    assert (code, [path for path in scratch.rglob("*") if path.is_file()], kept.exists()) == (0, [], True)
