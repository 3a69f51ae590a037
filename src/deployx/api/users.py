"""Users, for administrators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field
from sqlalchemy import select

from deployx.api import etags, paging
from deployx.api.auth import Password, require_good_password, shown_user
from deployx.api.context import CallerOf, ServicesOf
from deployx.api.fields import Body, Id, Name
from deployx.api.paging import Page
from deployx.db.database import Session
from deployx.db.schema import users as table
from deployx.errors import Invalid, NotFound, Problem
from deployx.people import audit, passwords, users
from deployx.people.policy import Action
from deployx.people.principal import Role

router = APIRouter(prefix="/api/users", tags=["people"])


RoleName = Annotated[Role, Field(strict=False)]
"""JSON has no enums: the role's name is enough, in otherwise strict bodies."""


class NewUser(Body):
    username: Name
    password: Password
    role: RoleName


class UserChange(Body):
    username: Name | None = None
    password: Password | None = None
    role: RoleName | None = None
    is_active: bool | None = None


class HandOver(Body):
    to_user_id: Id


@router.get("")
async def list_users(caller: CallerOf, services: ServicesOf, page: Annotated[Page, paging.QUERY]) -> dict[str, Any]:
    caller.require(Action.USERS)
    query = select(table).where(table.c.deleted_at.is_(None)).order_by(table.c.id.desc())
    async with services.database.read() as session:
        return await paging.listing(session, query, page, table.c.id, shown_user)


@router.post("", status_code=201)
async def create_user(body: NewUser, caller: CallerOf, response: Response) -> dict[str, Any]:
    caller.require(Action.USERS)
    require_good_password(body.password, "password")
    password_hash = await passwords.hashed(body.password)

    async def create(session: Session, now: datetime) -> dict[str, Any]:
        user_id = await users.create(session, body.username, password_hash, body.role, now=now)
        shown = shown_user(await users.get(session, user_id))
        await audit.record(session, caller.principal, "create", "user", user_id, now=now, after=shown)
        return shown

    shown = await caller.write(create)
    response.headers["Location"] = f"/api/users/{shown['id']}"
    return shown


@router.get("/{user_id}")
async def show_user(user_id: int, caller: CallerOf, services: ServicesOf, response: Response) -> dict[str, Any]:
    caller.require(Action.USERS)
    async with services.database.read() as session:
        shown = shown_user(await _found(session, user_id))
    etags.put_for(response, shown)
    return shown


@router.patch("/{user_id}")
async def change_user(
    user_id: int, body: UserChange, caller: CallerOf, services: ServicesOf, if_match: etags.IfMatch = None
) -> dict[str, Any]:
    """Change a user; deactivation ends all its sessions and tokens, a new password its sessions."""
    caller.require(Action.USERS)
    values = body.model_dump(exclude_none=True)
    if "password" in values:
        require_good_password(values["password"], "password")
        values["password_hash"] = await passwords.hashed(values.pop("password"))

    async def change(session: Session, now: datetime) -> tuple[dict[str, Any], bool]:
        before = shown_user(await _found(session, user_id))
        etags.require_for(if_match, before)
        if values:
            await users.change(session, user_id, keep_session=caller.principal.token_id, **values)
        after = shown_user(await _found(session, user_id))
        changed = after | ({"password": "changed"} if "password_hash" in values else {})
        await audit.record(session, caller.principal, "update", "user", user_id, now=now, before=before, after=changed)
        return after, "password_hash" in values and await users.is_first(session, user_id)

    shown, was_initial = await caller.write(change)
    if was_initial:
        users.forget_initial_password(services.settings.data_dir)
    return shown


@router.delete("/{user_id}", status_code=204)
async def delete_user(user_id: int, caller: CallerOf, if_match: etags.IfMatch = None) -> None:
    caller.require(Action.USERS)

    async def remove(session: Session, now: datetime) -> None:
        before = shown_user(await _found(session, user_id))
        etags.require_for(if_match, before)
        await users.remove(session, user_id, now=now)
        await audit.record(session, caller.principal, "delete", "user", user_id, now=now, before=before)

    await caller.write(remove)


@router.post("/{user_id}/hand-over")
async def hand_over(user_id: int, body: HandOver, caller: CallerOf) -> dict[str, Any]:
    """Give a user's tasks to another one, who answers for them from then on."""
    caller.require(Action.USERS)

    async def move(session: Session, now: datetime) -> int:
        await _found(session, user_id)
        receiver = await users.get(session, body.to_user_id)
        if receiver is None or not receiver.is_active or receiver.role == Role.VIEWER:
            why = f"User {body.to_user_id} does not exist, is deactivated or may not own tasks."
            raise Invalid([Problem(("body", "to_user_id"), why)])
        moved = await users.hand_over(session, user_id, body.to_user_id)
        after = {"to_user_id": body.to_user_id, "tasks": moved}
        await audit.record(session, caller.principal, "hand_over", "user", user_id, now=now, after=after)
        return moved

    return {"tasks": await caller.write(move)}


async def _found(session: Session, user_id: int) -> Any:
    user = await users.get(session, user_id)
    if user is None:
        raise NotFound
    return user
