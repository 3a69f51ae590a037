"""Signing in and out, one's own account, and personal API tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlalchemy import delete, select

from deployx.api import paging
from deployx.api.context import CallerOf, Services, ServicesOf
from deployx.api.fields import Body, InstantIn, Name, Text
from deployx.api.gate import COOKIE
from deployx.api.paging import Page
from deployx.db.database import Session
from deployx.db.schema import access_tokens
from deployx.errors import Invalid, NotFound, NotSignedIn, Problem
from deployx.people import audit, grants, passwords, sessions, users
from deployx.people.principal import Principal, Role
from deployx.timing.instants import format_instant

router = APIRouter(prefix="/api/auth", tags=["people"])

WRONG = "The username or the password is wrong."

Password = Annotated[str, Field(max_length=1000)]


class Login(Body):
    username: Annotated[Text, Field(max_length=200)]
    password: Password


class NewPassword(Body):
    current_password: Password
    new_password: Password


class NewToken(Body):
    name: Name
    expires_at: InstantIn | None = None


def shown_user(row: Any) -> dict[str, Any]:
    return {"id": row.id, "username": row.username, "role": row.role, "is_active": bool(row.is_active)}


@router.post("/login")
async def login(body: Login, request: Request, response: Response, services: ServicesOf) -> dict[str, Any]:
    """Open a session. Wrong names and wrong passwords read alike and take alike."""
    database, state = services.database, request.scope["state"]
    address = state["address"] or "unknown"
    user, attempt_id = await _attempt(services, body.username, address)
    right = await passwords.matches(user.password_hash if user is not None else None, body.password)
    if not right or user is None or not user.is_active:
        await database.transact(lambda session: _record_failure(session, body.username, address, state, services))
        raise NotSignedIn(WRONG)

    async def admit(session: Session) -> tuple[str, datetime]:
        now = await database.now(session)
        present = await users.get(session, user.id, to_sign_in=True)
        if present is None or present.password_hash != user.password_hash:
            raise NotSignedIn(WRONG)  # closed, or given another password, while this one was being checked
        await sessions.forget_attempt(session, attempt_id)
        token, expires_at = await sessions.open_session(session, user.id, now=now)
        who = Principal(user.id, user.username, Role(user.role), 0, state["address"], state["request_id"])
        await audit.record(session, who, "login", "user", user.id, now=now)
        return token, expires_at

    token, expires_at = await database.transact(admit)
    secure = request.url.scheme == "https" or services.settings.insecure_http
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure, path="/")
    return {
        "access_token": token,
        "token_type": "bearer",
        "expires_at": format_instant(expires_at),
        "user": shown_user(user),
    }


async def _attempt(services: Services, username: str, address: str) -> tuple[Any, int]:
    """The user of that name, or None, and the id of this attempt. Raises TooMany, mostly without writing anything."""
    database = services.database
    async with database.read() as session:
        await sessions.require_few_failures(session, username, address, now=await database.now(session))
        user = await users.find(session, username)

    async def begin(session: Session) -> int:
        return await sessions.begin_attempt(session, username, address, now=await database.now(session))

    return user, await database.transact(begin)


async def _record_failure(
    session: Session, account: str, address: str, state: dict[str, Any], services: Services
) -> None:  # fmt: skip
    now = await services.database.now(session)
    await audit.record(
        session, None, "login_failed", "user", None, now=now, after={"username": account}, address=address,
        request_id=state["request_id"],
    )  # fmt: skip


@router.post("/logout", status_code=204)
async def logout(caller: CallerOf, response: Response) -> None:
    """Revoke the session that makes this request, at once and everywhere."""
    who = caller.principal

    async def close(session: Session, now: datetime) -> None:
        await sessions.close_session(session, who.token_id)
        await audit.record(session, who, "logout", "user", who.user_id, now=now)

    await caller.write(close)
    response.delete_cookie(COOKIE, path="/")


@router.get("/me")
async def me(caller: CallerOf, services: ServicesOf) -> dict[str, Any]:
    """The signed-in user with its grants."""
    who = caller.principal
    async with services.database.read() as session:
        user = await users.get(session, who.user_id)
        return shown_user(user) | {"grants": await grants.of_user(session, who.user_id)}


@router.post("/password", status_code=204)
async def change_password(body: NewPassword, caller: CallerOf, services: ServicesOf) -> None:
    """Change one's password; the user's other sessions end, API tokens stay."""
    who = caller.principal
    require_good_password(body.new_password, "new_password")
    user, attempt_id = await _attempt(services, who.username, who.address or "unknown")
    if not await passwords.matches(user.password_hash if user else None, body.current_password):
        raise Invalid([Problem(("body", "current_password"), "This is not your current password.")])
    password_hash = await passwords.hashed(body.new_password)

    async def change(session: Session, now: datetime) -> bool:
        await sessions.forget_attempt(session, attempt_id)
        await users.change(session, who.user_id, keep_session=who.token_id, password_hash=password_hash)
        await audit.record(session, who, "update", "user", who.user_id, now=now, after={"password": "changed"})
        return await users.is_first(session, who.user_id)

    if await caller.write(change):
        users.forget_initial_password(services.settings.data_dir)


def require_good_password(password: str, field: str) -> None:
    if len(password) < passwords.SHORTEST:
        why = f"A password has at least {passwords.SHORTEST} characters; this one has {len(password)}."
        raise Invalid([Problem(("body", field), why)])


@router.get("/tokens")
async def list_tokens(caller: CallerOf, services: ServicesOf, page: Annotated[Page, paging.QUERY]) -> dict[str, Any]:
    who = caller.principal
    query = (
        select(access_tokens)
        .where(access_tokens.c.user_id == who.user_id, access_tokens.c.kind == "api")
        .order_by(access_tokens.c.id.desc())
    )
    async with services.database.read() as session:
        return await paging.listing(session, query, page, access_tokens.c.id, _shown_token)


@router.post("/tokens", status_code=201)
async def create_token(body: NewToken, caller: CallerOf, response: Response) -> dict[str, Any]:
    """Make a personal API token; it is shown this once."""
    who = caller.principal

    async def create(session: Session, now: datetime) -> tuple[int, str, datetime]:
        if body.expires_at is not None and body.expires_at <= now:
            raise Invalid([Problem(("body", "expires_at"), "This instant has passed: give a future one.")])
        if await users.get(session, who.user_id, to_sign_in=True) is None:
            raise NotSignedIn("Your account was closed.")
        token_id, token = await sessions.issue_api_token(session, who.user_id, body.name, body.expires_at, now=now)
        await audit.record(session, who, "create", "token", token_id, now=now, after={"name": body.name})
        return token_id, token, now

    token_id, token, now = await caller.write(create)
    response.headers["Location"] = f"/api/auth/tokens/{token_id}"
    return {
        "id": token_id,
        "name": body.name,
        "created_at": format_instant(now),
        "expires_at": format_instant(body.expires_at) if body.expires_at else None,
        "last_used_at": None,
        "token": token,
    }


@router.delete("/tokens/{token_id}", status_code=204)
async def delete_token(token_id: int, caller: CallerOf) -> None:
    who = caller.principal

    async def remove(session: Session, now: datetime) -> None:
        gone = await session.execute(
            delete(access_tokens).where(
                access_tokens.c.id == token_id, access_tokens.c.user_id == who.user_id, access_tokens.c.kind == "api"
            )
        )
        if gone.rowcount == 0:
            raise NotFound
        await audit.record(session, who, "delete", "token", token_id, now=now)

    await caller.write(remove)


def _shown_token(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "created_at": format_instant(row.created_at),
        "expires_at": format_instant(row.expires_at) if row.expires_at else None,
        "last_used_at": format_instant(row.last_used_at) if row.last_used_at else None,
    }
