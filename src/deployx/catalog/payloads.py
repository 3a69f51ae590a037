"""What a task or deployment runs, as validated values, and its form in a work order. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_TIMEOUT_SECONDS = 2_592_000
MAX_COMMAND_CHARACTERS = 65_536
OUTPUT_LIMIT_BYTES = 1_048_576


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("contains a NUL character: remove it")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty: write the command to run")
    return value


def _environment_name(value: str) -> str:
    if not value.replace("_", "a").isalnum() or value[0].isdigit() or not value.isascii():
        raise ValueError(f"{value!r} is no name of an environment variable: use letters, digits and _")
    if value.upper().startswith("DEPLOYX_"):
        raise ValueError(f"{value!r} is reserved: names that begin with DEPLOYX_ are set by the platform")
    return value


CommandText = Annotated[
    str, Field(max_length=MAX_COMMAND_CHARACTERS), AfterValidator(_without_nul), AfterValidator(_not_blank)
]
Text = Annotated[str, AfterValidator(_without_nul)]
EnvironmentName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_environment_name)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Command(_Strict):
    """One command of a batch, with what undoes it."""

    run: CommandText
    rollback: CommandText | None = None


class CommandPayload(_Strict):
    """One command or a batch of them."""

    command: CommandText | None = None
    commands: Annotated[list[CommandText | Command], Field(min_length=1, max_length=100)] | None = None
    shell: Literal["cmd", "powershell", "pwsh", "bash", "sh", "zsh", "auto"] = "auto"
    strategy: Literal["transactional", "best_effort"] = "transactional"
    stop_on_failure: bool = True
    env: Annotated[dict[EnvironmentName, Annotated[Text, Field(max_length=32_768)]], Field(max_length=100)] = {}
    working_directory: Annotated[Text, Field(min_length=1, max_length=4096)] | None = None
    run_as: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?$")] | None = None
    timeout_seconds: Annotated[int, Field(ge=1, le=MAX_TIMEOUT_SECONDS)] = 3600
    success_exit_codes: Annotated[
        list[Annotated[int, Field(ge=-2_147_483_648, le=4_294_967_295)]], Field(min_length=1, max_length=100)
    ] = [0]

    @model_validator(mode="after")
    def _one_of_command_and_commands(self) -> Self:
        if (self.command is None) == (self.commands is None):
            given = "neither" if self.command is None else "both"
            raise ValueError(f"{given} of `command` and `commands` given: give exactly one of them")
        return self


def command_work(body: dict[str, Any]) -> dict[str, Any]:
    """The `work` part of an order for a stored command payload; `steps` count from 0."""
    given = body["commands"] if body.get("commands") is not None else [body["command"]]
    commands = [{"run": item} if isinstance(item, str) else item for item in given]
    return {
        "shell": body["shell"],
        "strategy": body["strategy"],
        "stop_on_failure": body["stop_on_failure"],
        "steps": [
            {
                "index": index,
                "run": item["run"],
                "rollback": item.get("rollback"),
                "timeout_seconds": body["timeout_seconds"],
            }
            for index, item in enumerate(commands)
        ],
        "env": body["env"],
        "working_directory": body["working_directory"],
        "run_as": body["run_as"],
        "success_exit_codes": body["success_exit_codes"],
        "output_limit_bytes": OUTPUT_LIMIT_BYTES,
    }
