"""Stored files: uploaded and downloaded in pieces, listed, removed while nothing uses them."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from deployx.api import contents, etags, idempotency, paging, uploads
from deployx.api.context import Caller, CallerOf, ServicesOf
from deployx.api.paging import Page
from deployx.catalog import files
from deployx.catalog.blobs import Blob
from deployx.db.database import Session
from deployx.db.schema import files as table
from deployx.people import audit
from deployx.people.grants import Permission
from deployx.people.policy import Action, Thing
from deployx.people.principal import Role
from deployx.timing.instants import format_instant

router = APIRouter(prefix="/api/files", tags=["files"])

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [uploads.PART],
                    "properties": {uploads.PART: {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}
_BINARY: dict[int | str, dict[str, Any]] = {
    code: {"description": what, "content": {"application/octet-stream": {}}}
    for code, what in ((200, "The content."), (206, "The part that was asked for."))
}


class Filter(Page):
    search: str | None = None


def _shown(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "filename": row.filename,
        "size": row.size_bytes,
        "sha256": row.sha256,
        "uploaded_by": row.uploaded_by,
        "created_at": format_instant(row.created_at),
    }


async def _found(session: Session, caller: Caller, file_id: int, action: Action) -> Any:
    """The file, if the policy lets the caller do this with it; viewers know of their own ones alone."""
    query = files.visible(caller.principal.user_id, own_only=False).where(table.c.id == file_id)
    row = (await session.execute(query)).one_or_none()
    others = None if caller.principal.role is Role.VIEWER else Permission.VIEW
    owner_id = row.uploaded_by if row is not None else None
    caller.require(action, Thing(exists=row is not None, owner_id=owner_id, permission=others))
    return row


@router.post("", status_code=201, openapi_extra=_FORM)
async def upload_file(request: Request, caller: CallerOf, services: ServicesOf) -> Response:
    """Store a file: the part `file` of a multipart form."""
    caller.require(Action.CATALOGUE_CREATE)
    key = idempotency.key_of(request.headers)
    incoming = await asyncio.to_thread(services.blobs.receive)
    try:
        filename = await uploads.received(
            request.receive, request.headers, incoming, most=services.settings.max_upload_bytes
        )
        blob = await asyncio.to_thread(incoming.finish)
        await caller.write(lambda session, now: files.announce(session, blob, now=now))
        await asyncio.to_thread(services.blobs.place, incoming)
    finally:
        await asyncio.to_thread(incoming.discard)

    async def add(session: Session, now: datetime) -> idempotency.Answer:
        return await _add(session, caller, filename, blob, now)

    async def once(session: Session, now: datetime) -> idempotency.Answer:
        if key is None:
            return await add(session, now)
        asked = hashlib.sha256(f"POST /api/files {blob.sha256} {filename}".encode()).digest()
        return await idempotency.within(session, services, caller.principal, key, asked, now, add)

    made = await caller.write(once)
    return Response(made.body, made.status, made.headers)


async def _add(session: Session, caller: Caller, filename: str, blob: Blob, now: datetime) -> idempotency.Answer:
    file_id = await files.add(session, filename, blob, by=caller.principal.user_id, now=now)
    shown = _shown(await _found(session, caller, file_id, Action.CATALOGUE_READ))
    await audit.record(session, caller.principal, "create", "file", file_id, now=now, after=shown)
    answer = JSONResponse(shown, 201, {"Location": f"/api/files/{file_id}"})
    etags.put_for(answer, shown)
    return idempotency.Answer(201, dict(answer.headers), bytes(answer.body))


@router.get("")
async def list_files(caller: CallerOf, services: ServicesOf, page: Annotated[Filter, paging.QUERY]) -> dict[str, Any]:
    caller.require(Action.CATALOGUE_READ)
    query = files.visible(caller.principal.user_id, own_only=caller.principal.role is Role.VIEWER)
    if page.search:
        query = query.where(table.c.filename.icontains(page.search, autoescape=True))
    async with services.database.read() as session:
        return await paging.listing(session, query, page, table.c.id, _shown)


@router.get("/{file_id}")
async def show_file(file_id: int, caller: CallerOf, services: ServicesOf, response: Response) -> dict[str, Any]:
    async with services.database.read() as session:
        shown = _shown(await _found(session, caller, file_id, Action.CATALOGUE_READ))
    etags.put_for(response, shown)
    return shown


@router.get("/{file_id}/content", response_class=Response, responses=_BINARY)
async def show_content(file_id: int, request: Request, caller: CallerOf, services: ServicesOf) -> Response:
    """The content, or a range of it; its ETag is its SHA-256."""
    async with services.database.read() as session:
        row = await _found(session, caller, file_id, Action.CATALOGUE_READ)
    return await contents.answer(request, services.blobs, Blob(row.sha256, row.size_bytes), row.filename)


@router.delete("/{file_id}", status_code=204)
async def delete_file(file_id: int, caller: CallerOf, if_match: etags.IfMatch = None) -> None:
    """Remove a file that no task, software or open deployment uses."""

    async def remove(session: Session, now: datetime) -> None:
        shown = _shown(await _found(session, caller, file_id, Action.CATALOGUE_CHANGE))
        etags.require_for(if_match, shown)
        await files.remove(session, file_id)
        await audit.record(session, caller.principal, "delete", "file", file_id, now=now, before=shown)

    await caller.write(remove)
