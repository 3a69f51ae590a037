"""Lists: `skip` and `limit` or a cursor, one envelope, and a total that is exact up to ten thousand."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Query as FromQuery
from pydantic import Field
from sqlalchemy import ColumnElement, Select, func, select

from deployx.api.fields import Query
from deployx.db.database import Session
from deployx.errors import Invalid, Problem

COUNTED_TO = 10_000

One = TypeVar("One")

QUERY = FromQuery()


class Page(Query):
    """The part of a list that is asked for."""

    skip: Annotated[int, Field(ge=0, le=2**31)] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: str | None = None


async def rows_of(
    session: Session, query: Select[Any], page: Page, by: ColumnElement[Any]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """One page of a query that is ordered by `by` descending: its rows, and the envelope without the items.

    A cursor stands for "below this value of `by`", so what is added meanwhile moves nothing.
    """
    counted = await session.execute(
        select(func.count()).select_from(query.order_by(None).with_only_columns(by).limit(COUNTED_TO + 1).subquery())
    )
    total = counted.scalar_one()
    part = query.limit(page.limit + 1)
    part = part.offset(page.skip) if page.cursor is None else part.where(by < decoded(page.cursor))
    found = (await session.execute(part)).all()
    rows = found[: page.limit]
    cursor = encoded(rows[-1]._mapping[by]) if len(found) > page.limit else None
    return rows, _envelope(page, total, cursor)


def part_of(found: Sequence[One], page: Page, key: Callable[[One], int]) -> tuple[Sequence[One], dict[str, Any]]:
    """One page of what was computed, in ascending order of `key`; of a list cut after 10,001 the rest is not shown."""
    if page.cursor is None:
        rest = found[page.skip :]
    else:
        after = decoded(page.cursor)
        rest = [one for one in found if key(one) > after]
    shown = rest[: page.limit]
    cursor = encoded(key(shown[-1])) if len(rest) > page.limit else None
    return shown, _envelope(page, len(found), cursor)


def _envelope(page: Page, total: int, cursor: str | None) -> dict[str, Any]:
    envelope: dict[str, Any] = {
        "total": min(total, COUNTED_TO),
        "skip": page.skip,
        "limit": page.limit,
        "next_cursor": cursor,
    }
    if total > COUNTED_TO:
        envelope["total_capped"] = True
    return envelope


async def listing(
    session: Session, query: Select[Any], page: Page, by: ColumnElement[Any], shown: Callable[[Any], Mapping[str, Any]]
) -> dict[str, Any]:
    """The whole answer of a list whose rows are shown one by one."""
    rows, envelope = await rows_of(session, query, page, by)
    return {"items": [shown(row) for row in rows], **envelope}


def encoded(value: int) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def decoded(cursor: str) -> int:
    try:
        value = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        value = None
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        raise Invalid([Problem(("query", "cursor"), f"{cursor[:40]!r} is no cursor: use `next_cursor` of a list.")])
    return value
