"""Set-based statements for the hot paths: ids in blocks and inserts of thousands of rows, on both engines.

SQLAlchemy's per-row parameter work costs more than the insert itself here, so rows go to the driver as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, Integer, LargeBinary, String, Table, text
from sqlalchemy.ext.asyncio import AsyncConnection

from deployx.db.types import Instant, to_microseconds

Row = Sequence[Any]


def on_sqlite(session: AsyncConnection) -> bool:
    return session.dialect.name == "sqlite"


async def allocate_ids(session: AsyncConnection, table: Table, count: int) -> list[int]:
    """Reserve `count` new ids of a table, ascending; gaps may remain when the transaction is rolled back."""
    if count == 0:
        return []
    if on_sqlite(session):
        # Only one transaction writes at a time, so the highest id so far plus one is free until we commit.
        found = await session.execute(text("SELECT seq FROM sqlite_sequence WHERE name = :name"), {"name": table.name})
        first = (found.scalar() or 0) + 1
        return list(range(first, first + count))
    rows = await session.execute(
        text("SELECT nextval(pg_get_serial_sequence(:name, 'id')) FROM generate_series(1, :count)"),
        {"name": f'"{table.name}"', "count": count},
    )
    return sorted(rows.scalars())


async def insert_rows(
    session: AsyncConnection, table: Table, columns: Sequence[str], rows: Iterable[Row], *, keep_existing: bool = False
) -> None:
    """Insert rows given as tuples in the order of `columns`; values are Python's own (aware datetimes, JSON values).

    With `keep_existing`, a row whose key is taken is passed over, so that the same rows may come twice.
    """
    statement, converters = _insert_statement(table, tuple(columns), on_sqlite(session))
    if keep_existing:
        statement += " ON CONFLICT DO NOTHING"
    if on_sqlite(session):
        batch = _converted(rows, converters)
        if batch:
            await session.exec_driver_sql(statement, batch)
        return
    converted = _converted(rows, converters)
    if converted:
        await session.exec_driver_sql(statement, tuple(list(values) for values in zip(*converted, strict=True)))


async def update_rows(
    session: AsyncConnection, table: Table, columns: Sequence[str], rows: Iterable[Row], *, guard: str = "true"
) -> None:
    """Set `columns` of the rows whose id is each tuple's first value; `guard` is SQL that a row must also meet."""
    names = ("id", *columns)
    statement, converters = _update_statement(table, names, guard, on_sqlite(session))
    converted = _converted(rows, converters)
    if not converted:
        return
    if on_sqlite(session):
        await session.exec_driver_sql(statement, [(*row[1:], row[0]) for row in converted])
    else:
        await session.exec_driver_sql(statement, tuple(list(values) for values in zip(*converted, strict=True)))


def _converted(rows: Iterable[Row], converters: Sequence[Any]) -> list[tuple[Any, ...]]:
    needed = [(place, convert) for place, convert in enumerate(converters) if convert is not None]
    converted = []
    for row in rows:
        values = list(row)
        if len(values) != len(converters):
            raise ValueError(f"A row has {len(values)} values for {len(converters)} columns.")
        for place, convert in needed:
            if values[place] is not None:
                values[place] = convert(values[place])
        converted.append(tuple(values))
    return converted


@lru_cache(maxsize=256)
def _insert_statement(table: Table, columns: tuple[str, ...], sqlite: bool) -> tuple[str, tuple[Any, ...]]:
    names = ", ".join(f'"{name}"' for name in columns)
    converters = tuple(_converter(table.c[name], sqlite) for name in columns)
    if sqlite:
        marks = ", ".join("?" for _ in columns)
        return f'INSERT INTO "{table.name}" ({names}) VALUES ({marks})', converters
    arrays = ", ".join(f"${position}::{_array_type(table.c[name])}" for position, name in enumerate(columns, 1))
    casts = ", ".join(f'"{name}"{_cast(table.c[name])}' for name in columns)
    return f'INSERT INTO "{table.name}" ({names}) SELECT {casts} FROM unnest({arrays}) AS rows({names})', converters


@lru_cache(maxsize=256)
def _update_statement(table: Table, names: tuple[str, ...], guard: str, sqlite: bool) -> tuple[str, tuple[Any, ...]]:
    converters = tuple(_converter(table.c[name], sqlite) for name in names)
    if sqlite:
        settings = ", ".join(f'"{name}" = ?' for name in names[1:])
        return f'UPDATE "{table.name}" SET {settings} WHERE id = ? AND {guard}', converters
    arrays = ", ".join(f"${position}::{_array_type(table.c[name])}" for position, name in enumerate(names, 1))
    # Named apart from the table's columns, so that a guard can name those without a prefix.
    given = ", ".join(f'"new_{name}"' for name in names)
    settings = ", ".join(f'"{name}" = rows."new_{name}"{_cast(table.c[name])}' for name in names[1:])
    return (
        f'UPDATE "{table.name}" SET {settings} FROM unnest({arrays}) AS rows({given}) '
        f'WHERE "{table.name}".id = rows.new_id AND {guard}',
        converters,
    )


def _converter(column: Column[Any], sqlite: bool) -> Any:
    if isinstance(column.type, JSON):
        return _json_text
    if isinstance(column.type, Instant) and sqlite:
        return to_microseconds
    return None


def _json_text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _cast(column: Column[Any]) -> str:
    return "::json" if isinstance(column.type, JSON) else ""


def _array_type(column: Column[Any]) -> str:
    match column.type:
        case Instant():
            return "timestamptz[]"
        case Boolean():
            return "boolean[]"
        case Float():
            return "double precision[]"
        case BigInteger():
            return "bigint[]"
        case Integer():
            return "integer[]"
        case LargeBinary():
            return "bytea[]"
        case JSON() | String():
            return "text[]"
        case other:
            raise TypeError(f"Column {column} has the type {other!r}, for which no array type is written down.")


def any_of(session: AsyncConnection, column: str, name: str) -> str:
    """SQL for: `column` is one of the ids in parameter `name` (`ids_parameter`); one statement for any count."""
    if on_sqlite(session):
        return f"{column} IN (SELECT value FROM json_each(:{name}))"
    return f"{column} = ANY(:{name})"


def ids_parameter(session: AsyncConnection, ids: Iterable[int | str]) -> Any:
    return json.dumps(list(ids)) if on_sqlite(session) else list(ids)


def row_lock(session: AsyncConnection, table: str, *, skip: bool = False) -> str:
    """The end of a SELECT that locks what it finds; SQLite needs none, its writers already take turns."""
    if on_sqlite(session):
        return ""
    return f"FOR UPDATE OF {table}" + (" SKIP LOCKED" if skip else "")


def moment_parameter(session: AsyncConnection, moment: datetime) -> Any:
    """An instant as a parameter of a `text()` statement, which does not know the column's type."""
    return to_microseconds(moment) if on_sqlite(session) else moment
