"""What a device allows, whatever a server orders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deployx_agent.limits import Limits, NotAllowed, load
from deployx_agent.work import CommandWork, FileWork, Installer, SoftwareItem, SoftwareWork, Step

FILES = FileWork((), "/srv/app", True, None, None, True, False, False, 60)
COMMANDS = CommandWork("sh", "transactional", True, (Step(0, "uptime", None, 60),), {}, None, None, (0,), 1000)
REBOOT = replace(COMMANDS, steps=(Step(0, None, None, 60),))
SOFTWARE = SoftwareWork("install", (), 60, 1000)


@pytest.mark.parametrize(
    ("written", "forbidden"),
    [
        ("", []),
        ("allow_commands = false", [COMMANDS]),
        ('allowed_commands = ["uptime", "df .*"]', []),
        ('allowed_commands = ["up"]', [COMMANDS]),
        ("allow_reboot = false", [REBOOT]),
        ("allow_files = false", [FILES]),
        ("allow_software = false", [SOFTWARE]),
        ('allowed_roots = ["/srv"]', []),
        ('allowed_roots = ["/srv/app/"]', []),
        ('allowed_roots = ["/srv/ap", "/opt"]', [FILES]),
    ],
)
def test_limits_forbid_what_they_name_and_nothing_else(written: str, forbidden: list[object], tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text(written)
    limits = load(tmp_path)
    for work in (FILES, COMMANDS, REBOOT, SOFTWARE):
        if work in forbidden:
            with pytest.raises(NotAllowed, match=r"limits\.toml"):
                limits.check(work)
        else:
            limits.check(work)


def test_a_list_of_commands_holds_for_variables_and_installers_too(tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text('allowed_commands = ["uptime"]\nallowed_environment = ["LANG"]')
    limits = load(tmp_path)
    limits.check(replace(COMMANDS, env={"LANG": "C"}))
    with pytest.raises(NotAllowed, match="LD_PRELOAD"):
        limits.check(replace(COMMANDS, env={"LANG": "C", "LD_PRELOAD": "/tmp/x.so"}))
    sly = Installer("linux", None, "sh", None, "http://x/y.sh", "0" * 64, None, None, None, "rm -rf /", (0,))
    with pytest.raises(NotAllowed, match="'rm -rf /'"):
        limits.check(replace(SOFTWARE, items=(SoftwareItem(None, "sly", None, (sly,)),)))


def test_a_rollback_is_a_command_too(tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text('allowed_commands = ["uptime"]')
    sly = replace(COMMANDS, steps=(Step(0, "uptime", "rm -rf /", 60),))
    with pytest.raises(NotAllowed, match="'rm -rf /'"):
        load(tmp_path).check(sly)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("allow_everything = true", "sets 'allow_everything', which is no limit"),
        ("allow_setuid = 1", "sets allow_setuid to 1: write true or false"),
        ('allowed_roots = "/srv"', "write a list of texts"),
        ('allowed_commands = ["("]', "no regular expression"),
        ("allow_setuid", "is not TOML"),
    ],
)
def test_limits_that_are_not_understood_forbid_all_work(written: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text(written)
    with pytest.raises(NotAllowed) as refused:
        load(tmp_path)
    assert said in str(refused.value)


def test_without_a_file_only_setuid_is_forbidden(tmp_path: Path) -> None:
    assert load(tmp_path) == Limits()
    assert not load(tmp_path).allow_setuid


def test_a_root_that_only_begins_alike_is_another_folder() -> None:
    with pytest.raises(NotAllowed):
        Limits(allowed_roots=("/srv/app",)).check_path("/srv/application")
    with pytest.raises(NotAllowed):
        Limits(allowed_roots=("/srv",)).check_path("/srv/../etc")
    Limits(allowed_roots=("/",)).check_path("/anywhere")
