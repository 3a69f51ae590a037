"""An entry of the software catalogue as a validated value: its installers, one for each system it is for. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployx.catalog.kinds import KINDS, InstallerUrl, PackageName, Sha256
from deployx.catalog.payloads import CommandText, Id
from deployx.errors import FieldError

ExitCodes = Annotated[
    list[Annotated[int, Field(ge=-2_147_483_648, le=4_294_967_295)]], Field(min_length=1, max_length=100)
]


class Installer(BaseModel):
    """How to put the software on one system; the agent takes the first that fits the device."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    os: Literal["linux", "windows", "macos"]
    arch: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,40}$")] | None = None
    kind: Literal["deb", "rpm", "msi", "exe", "pkg", "sh", "ps1", "archive", "package"]
    file_id: Id | None = None
    url: InstallerUrl | None = None
    sha256: Sha256 | None = None
    package_name: PackageName | None = None
    install_command: CommandText | None = None
    uninstall_command: CommandText | None = None
    detect_command: CommandText | None = None
    success_exit_codes: ExitCodes = [0]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        kind = KINDS[self.kind]
        if self.os not in kind.systems:
            raise FieldError(("os",), f"An installer of kind {kind.name!r} is for {' or '.join(kind.systems)}.")
        self._require_one_source()
        if kind.needs_command and self.install_command is None:
            raise FieldError(("install_command",), f"An installer of kind {kind.name!r} needs an install_command.")
        return self

    def _require_one_source(self) -> None:
        wanted = ("package_name",) if self.kind == "package" else ("file_id", "url")
        given = [name for name in ("file_id", "url", "package_name") if getattr(self, name) is not None]
        if not given:
            raise FieldError((wanted[0],), f"An installer of kind {self.kind!r} needs {' or '.join(wanted)}.")
        for name in given:
            if name not in wanted:
                why = f"An installer of kind {self.kind!r} has no {name}: give {' or '.join(wanted)}."
                raise FieldError((name,), why)
        if len(given) > 1:
            raise FieldError((given[1],), f"Both {' and '.join(given)} are given: keep one of them.")
        if (self.url is None) != (self.sha256 is None):
            missing = "sha256" if self.sha256 is None else "url"
            raise FieldError((missing,), "An address comes with the SHA-256 of what lies there: give url and sha256.")

    def values(self) -> dict[str, Any]:
        """As it is stored and shown."""
        return self.model_dump(mode="json")
