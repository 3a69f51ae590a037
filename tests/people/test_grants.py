"""What grants give: the best group of a device, the least of many targets, the ceiling of the role."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event, insert, select, update

from deployx.db.database import Database, Session
from deployx.db.schema import devices, grants, group_members, groups, users
from deployx.people.grants import Permission, least_on_targets, of_user, visible_devices, visible_groups
from deployx.people.principal import Principal, Role

NOW = datetime(2026, 11, 23, tzinfo=UTC)
SHARED, OWN, FOREIGN = 1, 2, 3  # groups
BOTH, ONLY_SHARED, ELSEWHERE, UNGROUPED = 1, 2, 3, 4  # devices


def principal(role: Role) -> Principal:
    return Principal(1, "olga", role, 1)


@pytest.fixture
async def granted(database: Database) -> Database:
    """The user has `view` on SHARED and `manage` on OWN; device BOTH is in the two."""
    async with database.write() as session:
        person = {"username": "olga", "password_hash": "-", "role": "operator", "is_active": True, "created_at": NOW}
        await session.execute(insert(users).values(person))
        for number in range(1, 5):
            device: dict[str, Any] = {"name": f"d{number}", "public_key": b"k" * 32, "status": "offline"}
            device |= {"shells": [], "facts": {}, "labels": {}, "created_at": NOW}
            await session.execute(insert(devices).values(device))
        for name in ("shared", "own", "foreign"):
            await session.execute(insert(groups).values(name=name, description="", created_at=NOW))
        for group_id, device_id in ((SHARED, BOTH), (OWN, BOTH), (SHARED, ONLY_SHARED), (FOREIGN, ELSEWHERE)):
            await session.execute(insert(group_members).values(group_id=group_id, device_id=device_id))
        for group_id, permission in ((SHARED, "view"), (OWN, "manage")):
            await session.execute(insert(grants).values(group_id=group_id, user_id=1, permission=permission))
    return database


@pytest.mark.parametrize(
    ("role", "device_ids", "group_ids", "least"),
    [
        (Role.OPERATOR, [BOTH], [], Permission.MANAGE),
        (Role.OPERATOR, [ONLY_SHARED], [], Permission.VIEW),
        (Role.OPERATOR, [BOTH, ONLY_SHARED], [OWN], Permission.VIEW),
        (Role.OPERATOR, [BOTH], [OWN], Permission.MANAGE),
        (Role.OPERATOR, [BOTH, ELSEWHERE], [], None),
        (Role.OPERATOR, [UNGROUPED], [], None),
        (Role.OPERATOR, [BOTH], [FOREIGN], None),
        (Role.OPERATOR, [999], [], None),
        (Role.OPERATOR, [], [], None),
        (Role.VIEWER, [BOTH], [OWN], Permission.VIEW),
        (Role.VIEWER, [ELSEWHERE], [], None),
        (Role.ADMIN, [BOTH, UNGROUPED], [FOREIGN], Permission.MANAGE),
        (Role.ADMIN, [999], [], None),
        (Role.ADMIN, [], [], None),
    ],
)
async def test_the_least_permission_over_all_targets_counts(
    granted: Database, role: Role, device_ids: list[int], group_ids: list[int], least: Permission | None
) -> None:
    async with granted.read() as session:
        found = await least_on_targets(session, principal(role), device_ids=device_ids, group_ids=group_ids)
    assert found == least


async def _ids(session: Session, query: Any) -> set[int]:
    return set((await session.execute(query)).scalars())


async def test_a_viewer_never_exceeds_view_whatever_was_granted(granted: Database) -> None:
    viewer = principal(Role.VIEWER)
    async with granted.read() as session:
        assert await _ids(session, visible_groups(viewer)) == {SHARED, OWN}
        assert await _ids(session, visible_groups(viewer, Permission.RUN)) == set()
        assert await _ids(session, visible_devices(viewer, Permission.MANAGE)) == set()


async def test_the_selects_serve_as_conditions(granted: Database) -> None:
    operator = principal(Role.OPERATOR)
    async with granted.read() as session:
        for permission, expected in ((Permission.VIEW, {BOTH, ONLY_SHARED}), (Permission.RUN, {BOTH})):
            query = select(devices.c.id).where(devices.c.id.in_(visible_devices(operator, permission)))
            assert await _ids(session, query) == expected
        assert await _ids(session, visible_devices(principal(Role.ADMIN))) == {1, 2, 3, 4}


async def test_what_was_deleted_is_visible_to_nobody(granted: Database) -> None:
    async with granted.write() as session:
        await session.execute(update(groups).where(groups.c.id == OWN).values(deleted_at=NOW))
        await session.execute(update(devices).where(devices.c.id == ONLY_SHARED).values(deleted_at=NOW))
    async with granted.read() as session:
        assert await _ids(session, visible_groups(principal(Role.ADMIN))) == {SHARED, FOREIGN}
        held = await least_on_targets(session, principal(Role.OPERATOR), device_ids=[BOTH], group_ids=[])
        assert held is Permission.VIEW  # through the other group only
        gone = await least_on_targets(session, principal(Role.ADMIN), device_ids=[ONLY_SHARED], group_ids=[])
        assert gone is None
        assert [one["group_id"] for one in await of_user(session, 1)] == [SHARED]


async def test_many_targets_cost_as_many_queries_as_one(granted: Database) -> None:
    counted: list[str] = []
    async with granted.read() as session:

        def count(*arguments: Any) -> None:
            if arguments[2].startswith("SELECT"):  # SQLite's BEGIN comes this way too
                counted.append(arguments[2])

        event.listen(session.sync_connection, "before_cursor_execute", count)
        await least_on_targets(session, principal(Role.OPERATOR), device_ids=[BOTH], group_ids=[OWN])
        of_one = len(counted)
        counted.clear()
        await least_on_targets(
            session, principal(Role.OPERATOR), device_ids=list(range(1, 500)), group_ids=list(range(1, 500))
        )
        assert 0 < len(counted) == of_one
