"""`deployx agent …`: the agent's own command line under this program's name."""

from __future__ import annotations

from deployx_agent import cli as agent_cli


def run(arguments: list[str]) -> int:
    return agent_cli.main(arguments, prog="deployx agent")
