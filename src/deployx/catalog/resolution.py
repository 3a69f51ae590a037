"""Payloads as the work that agents are given: files with their digests, software closed over what it needs.

A constant number of queries for any number of payloads. The form of a work order is docs/reference/protocol.md's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from deployx.catalog.kinds import KINDS, SYSTEMS, kind_of_url
from deployx.catalog.payloads import FILES, MOST_FILES, OUTPUT_LIMIT_BYTES, SOFTWARE, command_work
from deployx.catalog.payloads import named_files as files_of
from deployx.catalog.payloads import named_software as software_of
from deployx.db.bulk import any_of, ids_parameter
from deployx.db.database import Session
from deployx.db.schema import software as software_table

Payloads = Mapping[int, tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Resolved:
    """The `work` of an order, or in words why there is none; and the digests of all that it fetches from the server."""

    work: dict[str, Any] | None
    refusal: str | None = None
    digests: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The part of the catalogue that some payloads need."""

    files: Mapping[int, Mapping[str, Any]]
    software: Mapping[int, Mapping[str, Any]]
    needs: Mapping[int, Sequence[int]]


class _Gone(Exception):
    """Something that a payload names is not there any more; the sentence says what."""


async def work_of(session: Session, payloads: Payloads) -> dict[int, Resolved]:
    """The work of stored payloads: payload id → (kind, body)."""
    catalogue = await _read(session, payloads)
    return {payload_id: resolved(kind, body, catalogue) for payload_id, (kind, body) in payloads.items()}


def resolved(kind: str, body: Mapping[str, Any], catalogue: Catalogue) -> Resolved:
    """One payload's work from what was read. Pure."""
    if kind not in (FILES, SOFTWARE):
        return Resolved(command_work(body))
    try:
        work = _file_work(body, catalogue) if kind == FILES else _software_work(body, catalogue)
    except _Gone as gone:
        return Resolved(None, str(gone))
    digests = sorted(set(digests_of(work)))
    if len(digests) > MOST_FILES:
        return Resolved(None, f"It needs {len(digests)} files, more than {MOST_FILES}: split it into several.")
    return Resolved(work, None, digests)


def in_order(asked: Iterable[int], needs: Mapping[int, Sequence[int]]) -> list[int]:
    """What was asked for and all that it needs, each once, what is needed first; else in the order asked for. Pure."""
    done: dict[int, None] = {}
    begun: set[int] = set()
    for one in asked:
        stack: list[tuple[int, bool]] = [(one, False)]
        while stack:
            node, needs_done = stack.pop()
            if needs_done:
                done[node] = None
            elif node not in begun:
                begun.add(node)
                stack.append((node, True))
                stack.extend((other, False) for other in reversed(needs.get(node, ())))
    return list(done)


async def _read(session: Session, payloads: Payloads) -> Catalogue:
    asked = {one for kind, body in payloads.values() for one in software_of(kind, body)}
    found = await _software(session, asked)
    needs = await _needs(session, found)
    file_ids = {one for kind, body in payloads.values() for one in files_of(kind, body)}
    file_ids |= {one["file_id"] for row in found.values() for one in row["installers"] if one["file_id"] is not None}
    return Catalogue(await _files(session, file_ids), found, needs)


async def _software(session: Session, asked: Iterable[int]) -> dict[int, Mapping[str, Any]]:
    """These entries and all that they need, however far."""
    ids = sorted(asked)
    if not ids:
        return {}
    statement = text(
        "WITH RECURSIVE needed(id) AS (SELECT id FROM software WHERE "
        + any_of(session, "id", "ids")
        + " UNION SELECT n.depends_on_id FROM software_dependencies n JOIN needed ON n.software_id = needed.id)"
        " SELECT id, name, version, installers FROM software WHERE id IN (SELECT id FROM needed)"
    )
    columns = {"installers": software_table.c.installers.type}
    rows = await session.execute(statement.columns(**columns), {"ids": ids_parameter(session, ids)})
    return {row["id"]: dict(row) for row in rows.mappings()}


async def _needs(session: Session, found: Iterable[int]) -> dict[int, list[int]]:
    ids = sorted(found)
    needs: dict[int, list[int]] = {one: [] for one in ids}
    if ids:
        statement = (
            "SELECT software_id, depends_on_id FROM software_dependencies WHERE "
            + any_of(session, "software_id", "ids")
            + " ORDER BY software_id, depends_on_id"
        )
        for row in await session.execute(text(statement), {"ids": ids_parameter(session, ids)}):
            needs[row.software_id].append(row.depends_on_id)
    return needs


async def _files(session: Session, wanted: Iterable[int]) -> dict[int, Mapping[str, Any]]:
    """Name, digest and size of files, as a work order tells them."""
    ids = sorted(wanted)
    if not ids:
        return {}
    statement = (
        "SELECT f.id, f.filename, f.sha256, b.size_bytes FROM files f JOIN blobs b ON b.sha256 = f.sha256 WHERE "
        + any_of(session, "f.id", "ids")
    )
    rows = await session.execute(text(statement), {"ids": ids_parameter(session, ids)})
    return {row.id: {"name": row.filename, "sha256": row.sha256, "size_bytes": row.size_bytes} for row in rows}


def _file_work(body: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    files: dict[str, dict[str, Any]] = {}
    for file_id in files_of(FILES, body):
        file = _file(file_id, catalogue)
        earlier = files.setdefault(file["name"], file)
        if earlier["sha256"] != file["sha256"]:
            raise _Gone(f"Two different files are named {file['name']!r}: one would overwrite the other.")
    passed_on = (
        "target_path", "create_path_if_not_exists", "mode", "owner", "overwrite", "backup", "follow_links",
        "timeout_seconds",
    )  # fmt: skip
    return {"files": list(files.values())} | {name: body[name] for name in passed_on}


def _software_work(body: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    asked = software_of(SOFTWARE, body)
    for one in asked:
        if one not in catalogue.software:
            raise _Gone(f"Software {one} does not exist any more.")
    ids = in_order(asked, catalogue.needs)
    is_install = body["action"] == "install"
    items = [_item(catalogue.software[one], catalogue) for one in ids if is_install or one in set(asked)]
    if body["custom_software"] is not None:
        items.append(_custom_item(body["custom_software"]))
    return {
        "action": body["action"],
        "timeout_seconds": body["timeout_seconds"],
        "output_limit_bytes": OUTPUT_LIMIT_BYTES,
        "items": items if is_install else items[::-1],
    }


def _item(row: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    installers = []
    for installer in row["installers"]:
        values = dict(installer)
        file_id = values.pop("file_id")
        installers.append(values | {"file": None if file_id is None else _file(file_id, catalogue)})
    return {
        "software_id": row["id"], "name": row["name"], "version": row["version"] or None, "installers": installers,
    }  # fmt: skip


def _file(file_id: int, catalogue: Catalogue) -> dict[str, Any]:
    found = catalogue.files.get(file_id)
    if found is None:
        raise _Gone(f"File {file_id} does not exist any more.")
    return dict(found)


_INSTALLER: dict[str, Any] = {
    "arch": None, "file": None, "url": None, "sha256": None, "package_name": None, "install_command": None,
    "uninstall_command": None, "detect_command": None, "success_exit_codes": [0],
}  # fmt: skip


def _custom_item(custom: str | Mapping[str, Any]) -> dict[str, Any]:
    """Software from outside the catalogue: a package of the device's own manager, or what lies at an address."""
    if isinstance(custom, str):
        named, version, source = custom, None, {"package_name": custom}
        kind = KINDS["package"]
    else:
        found = kind_of_url(custom["url"])
        if found is None:
            raise _Gone(f"{custom['url']!r} does not end like an installer.")
        named, version, kind = custom["name"], custom["version"], found
        source = {name: custom[name] for name in ("url", "sha256", "install_command")}
    installers = [
        {"os": system, "kind": kind.name} | _INSTALLER | source for system in SYSTEMS if system in kind.systems
    ]
    return {"software_id": None, "name": named, "version": version, "installers": installers}


def digests_of(work: Mapping[str, Any]) -> Iterable[str]:
    """The digests of all that an order with this work fetches from the server. Pure."""
    yield from (file["sha256"] for file in work.get("files", ()))
    for item in work.get("items", ()):
        yield from (one["file"]["sha256"] for one in item["installers"] if one["file"] is not None)
