"""Sessions and API tokens: opaque random strings, stored as hashes; a row is all there is to revoke."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timedelta

from sqlalchemy import delete, func, insert, or_, select, text, update

from deployx.db.bulk import on_sqlite
from deployx.db.database import Session
from deployx.db.schema import access_tokens, login_failures, users
from deployx.errors import TooMany
from deployx.people.principal import Principal, Role

SESSION_LASTS = timedelta(hours=12)
FAILURES_ALLOWED = 10
FAILURES_WITHIN = timedelta(minutes=5)
USE_IS_NOTED_EVERY = timedelta(minutes=1)


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


async def open_session(session: Session, user_id: int, *, now: datetime) -> tuple[str, datetime]:
    """Sign a user in; answers the token and when it ends. The user's sessions that have ended are cleared away."""
    ended = (access_tokens.c.kind == "session") & (access_tokens.c.expires_at <= now)
    await session.execute(delete(access_tokens).where(access_tokens.c.user_id == user_id, ended))
    expires_at = now + SESSION_LASTS
    _, token = await _issue(session, user_id, "session", None, expires_at, now)
    return token, expires_at


async def issue_api_token(
    session: Session, user_id: int, name: str, expires_at: datetime | None, *, now: datetime
) -> tuple[int, str]:
    return await _issue(session, user_id, "api", name, expires_at, now)


async def _issue(
    session: Session, user_id: int, kind: str, name: str | None, expires_at: datetime | None, now: datetime
) -> tuple[int, str]:
    token = ("dxs_" if kind == "session" else "dxt_") + secrets.token_urlsafe(32)
    values = {"user_id": user_id, "kind": kind, "name": name, "token_hash": digest(token), "expires_at": expires_at}
    row = await session.execute(insert(access_tokens).values(**values, created_at=now).returning(access_tokens.c.id))
    return int(row.scalar_one()), token


async def principal_of(
    session: Session, token: str, *, now: datetime, address: str | None, request_id: str | None
) -> Principal | None:
    """Whose token this is: one indexed read. None where it is unknown, ended, or its user may not sign in."""
    row = (
        await session.execute(
            select(
                access_tokens.c.id,
                access_tokens.c.kind,
                access_tokens.c.expires_at,
                access_tokens.c.last_used_at,
                users.c.id.label("user_id"),
                users.c.username,
                users.c.role,
            )
            .join(users, users.c.id == access_tokens.c.user_id)
            .where(access_tokens.c.token_hash == digest(token), users.c.is_active, users.c.deleted_at.is_(None))
        )
    ).one_or_none()
    if row is None or (row.expires_at is not None and row.expires_at <= now):
        return None
    noted = row.last_used_at is not None and row.last_used_at > now - USE_IS_NOTED_EVERY
    use_is_due = row.kind == "api" and not noted
    return Principal(row.user_id, row.username, Role(row.role), row.id, address, request_id, use_is_due)


async def note_use(session: Session, token_id: int, *, now: datetime) -> None:
    """Write down that a token was used; of many requests at once only the first writes."""
    last = access_tokens.c.last_used_at
    stale = or_(last.is_(None), last <= now - USE_IS_NOTED_EVERY)
    await session.execute(update(access_tokens).where(access_tokens.c.id == token_id, stale).values(last_used_at=now))


async def close_session(session: Session, token_id: int) -> None:
    await session.execute(delete(access_tokens).where(access_tokens.c.id == token_id))


async def revoke_all(session: Session, user_id: int, *, kind: str | None = None, besides: int | None = None) -> None:
    """End a user's tokens: all, or those of one kind, except the one named."""
    statement = delete(access_tokens).where(access_tokens.c.user_id == user_id)
    if kind is not None:
        statement = statement.where(access_tokens.c.kind == kind)
    if besides is not None:
        statement = statement.where(access_tokens.c.id != besides)
    await session.execute(statement)


async def require_few_failures(session: Session, account: str, address: str, *, now: datetime) -> None:
    """Raise TooMany after ten failures of this account from this address within five minutes."""
    since = now - FAILURES_WITHIN
    counted, oldest = (
        await session.execute(
            select(func.count(), func.min(login_failures.c.at)).where(
                login_failures.c.account == account, login_failures.c.address == address, login_failures.c.at > since
            )
        )
    ).one()
    if counted >= FAILURES_ALLOWED:
        wait = max(1, round((oldest + FAILURES_WITHIN - now).total_seconds()))
        raise TooMany(f"Too many failed sign-ins for this account: try again in {wait} seconds.", wait)


async def begin_attempt(session: Session, account: str, address: str, *, now: datetime) -> int:
    """Count an attempt as failed before it is made, so that many at once get no more than ten; answers its id.

    Raises TooMany. `forget_attempt` takes it back where the password was right.
    """
    if not on_sqlite(session):
        key = int.from_bytes(digest(f"{account}\n{address}")[:8], signed=True)
        await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
    await require_few_failures(session, account, address, now=now)
    await session.execute(delete(login_failures).where(login_failures.c.at <= now - FAILURES_WITHIN))
    values = {"account": account, "address": address, "at": now}
    row = await session.execute(insert(login_failures).values(values).returning(login_failures.c.id))
    return int(row.scalar_one())


async def forget_attempt(session: Session, attempt_id: int) -> None:
    await session.execute(delete(login_failures).where(login_failures.c.id == attempt_id))


async def count_failure(session: Session, account: str, address: str, *, now: datetime) -> None:
    await session.execute(insert(login_failures).values(account=account, address=address, at=now))
    await session.execute(delete(login_failures).where(login_failures.c.at <= now - FAILURES_WITHIN))
