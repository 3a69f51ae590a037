"""Checks what a payload names: that the files and the software exist and are visible to the caller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployx.catalog import uses
from deployx.catalog.payloads import FIELDS, named_files, named_software
from deployx.db.database import Session
from deployx.db.schema import files, software
from deployx.errors import Problem


async def check(session: Session, kind: str, body: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the ids in a stored payload; what is found cannot be deleted before the transaction ends.

    Whoever creates work is an operator or an administrator, and those see all files and all software.
    """
    problems = []
    for what, table, named, field in (
        ("file", files, named_files(kind, body), "file_ids"),
        ("software", software, named_software(kind, body), "software_ids"),
    ):
        known = await uses.existing(session, table, named)
        problems += [
            Problem(
                ("body", FIELDS[kind], field, place),
                f"{what.capitalize()} {one} does not exist or is not visible to you.",
            )
            for place, one in enumerate(named)
            if one not in known
        ]
    return problems
