"""The leases of the server's processes: who is alive, and so whose devices are connected."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import delete, insert, select, update

from deployx.db.database import Session
from deployx.db.schema import replicas

FORGOTTEN_AFTER = timedelta(days=1)


async def renew_lease(session: Session, replica_id: str, until: datetime) -> None:
    """Hold the lease until then; leases that ended a day ago are forgotten."""
    renewed = await session.execute(update(replicas).where(replicas.c.id == replica_id).values(lease_until=until))
    if renewed.rowcount == 0:
        await session.execute(insert(replicas).values(id=replica_id, lease_until=until))
        await session.execute(delete(replicas).where(replicas.c.lease_until < until - FORGOTTEN_AFTER))


async def living(session: Session, *, now: datetime) -> set[str]:
    return set((await session.execute(select(replicas.c.id).where(replicas.c.lease_until >= now))).scalars())


async def release(session: Session, replica_id: str) -> None:
    await session.execute(delete(replicas).where(replicas.c.id == replica_id))
