"""The documents are true: links lead somewhere, the tour names what exists, tables name every setting and error."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
from tools import lifecycle_page

from deployx import errors
from deployx.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", page.read_text())]
    missing = [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_tour_names_files_and_functions_that_exist() -> None:
    words = re.findall(r"`([^`]+)`", (ROOT / "docs" / "tour.md").read_text())
    path: Path | None = None
    checked = 0
    for word in words:
        if word.endswith(".py"):
            path = ROOT / word
            assert path.exists(), word
        elif path is not None and re.fullmatch(r"[a-zA-Z_]+", word) and word != "next_after":
            assert word in _defined(path), f"{word} is not in {path.name}"
            checked += 1
    assert checked > 20


def _defined(path: Path) -> set[str]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


def test_the_lifecycle_page_is_drawn_from_the_table_of_states() -> None:
    assert lifecycle_page.PAGE.read_text() == lifecycle_page.page(), "run: python -m tools.lifecycle_page"


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    assert [field.name for field in fields(Settings) if f"`{field.name.upper()}`" not in page] == []


def test_every_error_is_documented_with_its_status() -> None:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    known = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.DeployXError)]
    assert [one.code for one in known if f"| {one.code} |" not in page] == []
