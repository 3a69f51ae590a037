"""What a task or deployment runs, as validated values, and its form in a work order. Pure.

What a payload names is looked up elsewhere: `references` checks it, `resolution` turns it into work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from deployx.catalog.kinds import InstallerUrl, PackageName, Sha256, kind_of_url
from deployx.errors import FieldError

COMMAND, SOFTWARE, FILES = "command", "software_deployment", "file_deployment"
FIELDS = {COMMAND: "command_payload", SOFTWARE: "software_payload", FILES: "file_payload"}
"""The types of work, and the field of a body that carries the payload of each."""

MAX_TIMEOUT_SECONDS = 2_592_000
MOST_FILES = 1000
BIGGEST_ID = 2**63 - 1
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


Timeout = Annotated[int, Field(ge=1, le=MAX_TIMEOUT_SECONDS)]
Id = Annotated[int, Field(ge=1, le=BIGGEST_ID)]


def _each_once(values: list[int]) -> list[int]:
    return list(dict.fromkeys(values))


def _absolute(value: str) -> str:
    if re.match(r"/|[A-Za-z]:[\\/]|\\\\[^\\/]", value) is None:
        raise ValueError(f"{value[:100]!r} is no absolute path: begin it with /, a drive (C:\\) or \\\\server\\share")
    return value


def _name(value: str) -> str:
    trimmed = value.strip()
    if not trimmed:
        raise ValueError("is empty: write a name")
    if not trimmed.isprintable():
        raise ValueError("holds control characters: remove them")
    return trimmed


TargetPath = Annotated[str, Field(max_length=4096), AfterValidator(_without_nul), AfterValidator(_absolute)]
DisplayName = Annotated[str, Field(max_length=200), AfterValidator(_name)]
_ACCOUNT = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?"
OwnerName = Annotated[str, Field(pattern=f"^(?:{_ACCOUNT}(?::{_ACCOUNT})?|:{_ACCOUNT})$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Command(_Strict):
    """One command of a batch, with what undoes it."""

    run: CommandText
    rollback: CommandText | None = None


class Reboot(_Strict):
    """A step that restarts the device, and succeeds when it is back."""

    reboot: Literal[True]
    timeout_seconds: Timeout = 600


def _form_of_step(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, Reboot) or (isinstance(value, Mapping) and "reboot" in value):
        return "<reboot>"
    return "<command>" if isinstance(value, Mapping | Command) else None


BatchStep = Annotated[
    Annotated[CommandText, Tag("<text>")] | Annotated[Command, Tag("<command>")] | Annotated[Reboot, Tag("<reboot>")],
    Discriminator(
        _form_of_step,
        custom_error_type="step_form",
        custom_error_message='A step is a command as text, {"run": …, "rollback": …} or {"reboot": true}',
    ),
]


class CommandPayload(_Strict):
    """One command or a batch of them."""

    command: CommandText | None = None
    commands: Annotated[list[BatchStep], Field(min_length=1, max_length=100)] | None = None
    shell: Literal["cmd", "powershell", "pwsh", "bash", "sh", "zsh", "auto"] = "auto"
    strategy: Literal["transactional", "best_effort"] = "transactional"
    stop_on_failure: bool = True
    env: Annotated[dict[EnvironmentName, Annotated[Text, Field(max_length=32_768)]], Field(max_length=100)] = {}
    working_directory: Annotated[Text, Field(min_length=1, max_length=4096)] | None = None
    run_as: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?$")] | None = None
    timeout_seconds: Timeout = 3600
    success_exit_codes: Annotated[
        list[Annotated[int, Field(ge=-2_147_483_648, le=4_294_967_295)]], Field(min_length=1, max_length=100)
    ] = [0]

    @model_validator(mode="after")
    def _one_of_command_and_commands(self) -> Self:
        if (self.command is None) == (self.commands is None):
            given = "neither" if self.command is None else "both"
            raise ValueError(f"{given} of `command` and `commands` given: give exactly one of them")
        return self


class CustomSoftware(_Strict):
    """Software that is not in the catalogue, fetched from an address; its kind is the address's suffix."""

    name: DisplayName
    version: DisplayName | None = None
    url: InstallerUrl
    sha256: Sha256
    install_command: CommandText | None = None

    @model_validator(mode="after")
    def _known_kind(self) -> Self:
        kind = kind_of_url(self.url)
        if kind is None:
            raise FieldError(("url",), f"{self.url[-100:]!r} does not end like an installer: .deb, .rpm, .msi, …")
        if kind.needs_command and self.install_command is None:
            raise FieldError(("install_command",), f"An installer of kind {kind.name!r} needs an install_command.")
        return self


def _form_of_custom(value: object) -> str | None:
    if isinstance(value, str):
        return "<package>"
    return "<software>" if isinstance(value, Mapping | CustomSoftware) else None


class SoftwarePayload(_Strict):
    """Software of the catalogue, or of elsewhere, to be installed or uninstalled."""

    software_ids: Annotated[list[Id], Field(max_length=MOST_FILES), AfterValidator(_each_once)] = []
    custom_software: (
        Annotated[
            Annotated[PackageName, Tag("<package>")] | Annotated[CustomSoftware, Tag("<software>")],
            Discriminator(
                _form_of_custom,
                custom_error_type="custom_form",
                custom_error_message="Custom software is the name of a package, or an object with name, url and sha256",
            ),
        ]
        | None
    ) = None
    action: Literal["install", "uninstall"] = "install"
    deployment_name: DisplayName | None = None
    timeout_seconds: Timeout = 3600

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.software_ids and self.custom_software is None:
            raise FieldError(("software_ids",), "Name at least one entry of the catalogue, or give custom_software.")
        return self


class FilePayload(_Strict):
    """Files to be placed in a folder of the device."""

    file_ids: Annotated[list[Id], Field(min_length=1, max_length=MOST_FILES), AfterValidator(_each_once)]
    target_path: TargetPath
    create_path_if_not_exists: bool = True
    mode: Annotated[str, Field(pattern=r"^0?[0-7]{3,4}$")] | None = None
    owner: OwnerName | None = None
    overwrite: bool = True
    backup: bool = False
    follow_links: bool = False
    deployment_name: DisplayName | None = None
    timeout_seconds: Timeout = 3600


Payload = CommandPayload | SoftwarePayload | FilePayload


def stored(payload: Payload) -> dict[str, Any]:
    """A payload as it is stored and shown: all defaults filled in, only the form that was used."""
    values = payload.model_dump(mode="json")
    if isinstance(payload, CommandPayload):
        values.pop("command" if payload.command is None else "commands")
    return values


def named_files(kind: str, body: Mapping[str, Any]) -> Sequence[int]:
    """The files that a stored payload names, each once; a preview's may be absent and names none."""
    return list(dict.fromkeys(body.get("file_ids", ()))) if kind == FILES else []


def named_software(kind: str, body: Mapping[str, Any]) -> Sequence[int]:
    """The software of the catalogue that a stored payload names, each once; what that needs is not named."""
    return list(dict.fromkeys(body.get("software_ids", ()))) if kind == SOFTWARE else []


def command_work(body: Mapping[str, Any]) -> dict[str, Any]:
    """The `work` part of an order for a stored command payload; `steps` count from 0."""
    given = body["commands"] if body.get("commands") is not None else [body["command"]]
    return {
        "shell": body["shell"],
        "strategy": body["strategy"],
        "stop_on_failure": body["stop_on_failure"],
        "steps": [_step(index, item, body["timeout_seconds"]) for index, item in enumerate(given)],
        "env": body["env"],
        "working_directory": body["working_directory"],
        "run_as": body["run_as"],
        "success_exit_codes": body["success_exit_codes"],
        "output_limit_bytes": OUTPUT_LIMIT_BYTES,
    }


def _step(index: int, item: str | Mapping[str, Any], timeout_seconds: int) -> dict[str, Any]:
    if isinstance(item, str):
        return {"index": index, "run": item, "rollback": None, "timeout_seconds": timeout_seconds}
    if item.get("reboot"):
        return {"index": index, "reboot": True, "timeout_seconds": item["timeout_seconds"]}
    return {"index": index, "run": item["run"], "rollback": item.get("rollback"), "timeout_seconds": timeout_seconds}
