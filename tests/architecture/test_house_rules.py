"""The rules of the house that a machine can check: sizes, imports, first sentences."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "agent" / "src").rglob("*.py")])
AGENT = sorted((ROOT / "agent" / "src").rglob("*.py"))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_a_file_says_what_it_is_for_and_keeps_within_bounds(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    opening = ast.get_docstring(tree)
    assert opening, "a file begins with a sentence that says what it is responsible for"
    if text.count("\n") > 400:
        assert "Over 400 lines" in opening, "a long file says why at its top"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, f"{node.name} is longer than 80 lines"
            late = [one for one in ast.walk(node) if isinstance(one, ast.Import | ast.ImportFrom)]
            assert not late, f"{node.name} imports inside its body"


def test_no_file_has_a_name_that_says_nothing() -> None:
    nothing = {"utils", "helpers", "common", "misc", "manager", "handler", "data", "info"}
    assert [_name(path) for path in SOURCES if path.stem in nothing] == []


def test_the_agent_needs_two_libraries_and_nothing_of_the_server() -> None:
    allowed = {*sys.stdlib_module_names, "deployx_agent", "websockets", "cryptography"}
    imported = set()
    for path in AGENT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    assert imported <= allowed
