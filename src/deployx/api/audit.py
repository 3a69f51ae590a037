"""The audit, for administrators."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from sqlalchemy import select

from deployx.api import paging
from deployx.api.context import CallerOf, ServicesOf
from deployx.api.fields import Id
from deployx.api.paging import Page
from deployx.db.schema import audit_events as table
from deployx.people.policy import Action
from deployx.timing.instants import format_instant

router = APIRouter(prefix="/api/audit", tags=["people"])


class Filter(Page):
    object_type: str | None = None
    object_id: Id | None = None
    user_id: Id | None = None


@router.get("")
async def list_audit(caller: CallerOf, services: ServicesOf, page: Annotated[Filter, paging.QUERY]) -> dict[str, Any]:
    """Who did what, newest first."""
    caller.require(Action.AUDIT)
    query = select(table).order_by(table.c.id.desc())
    for name in ("object_type", "object_id", "user_id"):
        wanted = getattr(page, name)
        if wanted is not None:
            query = query.where(table.c[name] == wanted)
    async with services.database.read() as session:
        return await paging.listing(session, query, page, table.c.id, _shown)


def _shown(row: Any) -> dict[str, Any]:
    return dict(row._mapping) | {"at": format_instant(row.at)}
