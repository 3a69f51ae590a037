"""Writes docs/lifecycle.md from the table of states; a test checks that the page is up to date."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from deployx.lifecycle import DEPLOYMENT_MOVES, EXECUTION_MOVES, RUN_MOVES, TASK_MOVES

PAGE = Path(__file__).parent.parent / "docs" / "lifecycle.md"
State = TypeVar("State", bound=StrEnum)


def page() -> str:
    parts = [
        "# Lifecycle\n\nDrawn from `src/deployx/lifecycle.py` by `tools/lifecycle_page.py`. "
        "A state without an arrow out of it is an end.\n"
        "Occurrences that never start are written as `missed` or `skipped`, with a reason.\n"
    ]
    parts += [_diagram("Task", TASK_MOVES), _diagram("Execution", EXECUTION_MOVES)]
    parts += [_diagram("Deployment", DEPLOYMENT_MOVES), _diagram("Device run", RUN_MOVES)]
    return "\n".join(parts)


def _diagram(title: str, moves: Mapping[State, frozenset[State]]) -> str:
    arrows = [f"    {before} --> {after}" for before, targets in moves.items() for after in sorted(targets)]
    return f"## {title}\n\n```mermaid\nstateDiagram-v2\n" + "\n".join(arrows) + "\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
