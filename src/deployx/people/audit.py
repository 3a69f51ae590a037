"""The audit: who did what, with what before and after, in the transaction of the change itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import insert

from deployx.db.database import Session
from deployx.db.schema import audit_events
from deployx.people.principal import Principal


async def record(
    session: Session, principal: Principal | None, action: str, object_type: str, object_id: int | None, *,
    now: datetime, before: Mapping[str, Any] | None = None, after: Mapping[str, Any] | None = None,
    address: str | None = None, request_id: str | None = None,
) -> None:  # fmt: skip
    """Write one row; `before` and `after` are JSON values and hold no secrets."""
    await session.execute(
        insert(audit_events).values(
            at=now,
            user_id=principal.user_id if principal else None,
            action=action,
            object_type=object_type,
            object_id=object_id,
            before=None if before is None else dict(before),
            after=None if after is None else dict(after),
            address=principal.address if principal else address,
            request_id=principal.request_id if principal else request_id,
        )
    )
