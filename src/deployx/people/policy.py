"""The one policy function: who may do what with which thing. Pure; every route asks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from deployx.errors import NotFound, NotPermitted, NotSignedIn
from deployx.people.grants import Permission
from deployx.people.principal import Principal, Role


class Action(StrEnum):
    """What can be asked for; a route names one."""

    OWN_ACCOUNT = "own account"
    USERS = "administer users"
    AUDIT = "read the audit"
    METRICS = "read metrics"
    KEYS = "make activation keys"
    DEVICE_READ = "see the device"
    DEVICE_NAME = "rename or remove the device"
    DEVICE_MANAGE = "change the device"
    GROUP_ADMIN = "create or delete groups"
    GROUP_READ = "see the group"
    GROUP_MANAGE = "change the group"
    WORK_READ = "see the work"
    WORK_CREATE = "create work"
    WORK_CHANGE = "change, run or delete the work"
    CATALOGUE_READ = "see the catalogue"
    CATALOGUE_CREATE = "add to the catalogue"
    CATALOGUE_CHANGE = "change what another made"


class Verdict(StrEnum):
    ALLOW = "allow"
    SIGN_IN = "sign in"
    FORBID = "forbid"
    HIDE = "hide"


@dataclass(frozen=True, slots=True)
class Thing:
    """What the action is about: whether it exists, who owns it, the caller's least permission on what it reaches."""

    exists: bool = True
    owner_id: int | None = None
    permission: Permission | None = None


NOTHING_IN_PARTICULAR = Thing(permission=Permission.MANAGE)
"""For actions on a collection, where the role alone decides."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """Roles besides the administrator that may ever do it, and the permission on the thing that it takes."""

    roles: frozenset[Role]
    needs: Permission = Permission.VIEW


_ALL = frozenset({Role.OPERATOR, Role.VIEWER})
_OPERATOR = frozenset({Role.OPERATOR})
_ADMIN: frozenset[Role] = frozenset()

RULES: Mapping[Action, _Rule] = {
    Action.OWN_ACCOUNT: _Rule(_ALL),
    Action.USERS: _Rule(_ADMIN),
    Action.AUDIT: _Rule(_ADMIN),
    Action.METRICS: _Rule(_ADMIN),
    Action.KEYS: _Rule(_OPERATOR, Permission.MANAGE),
    Action.DEVICE_READ: _Rule(_ALL),
    Action.DEVICE_NAME: _Rule(_ADMIN),
    Action.DEVICE_MANAGE: _Rule(_OPERATOR, Permission.MANAGE),
    Action.GROUP_ADMIN: _Rule(_ADMIN),
    Action.GROUP_READ: _Rule(_ALL),
    Action.GROUP_MANAGE: _Rule(_OPERATOR, Permission.MANAGE),
    Action.WORK_READ: _Rule(_ALL),
    Action.WORK_CREATE: _Rule(_OPERATOR, Permission.RUN),
    Action.WORK_CHANGE: _Rule(_OPERATOR, Permission.MANAGE),
    Action.CATALOGUE_READ: _Rule(_ALL),
    Action.CATALOGUE_CREATE: _Rule(_OPERATOR),
    Action.CATALOGUE_CHANGE: _Rule(_OPERATOR, Permission.MANAGE),
}


def verdict(principal: Principal | None, action: Action, thing: Thing = NOTHING_IN_PARTICULAR) -> Verdict:
    """Decide. Where a role may never do something, foreign and absent things answer alike: the role is asked first."""
    if principal is None:
        return Verdict.SIGN_IN
    rule = RULES[action]
    if not principal.is_admin and principal.role not in rule.roles:
        return Verdict.FORBID
    if not thing.exists:
        return Verdict.HIDE
    if principal.is_admin or thing.owner_id == principal.user_id:
        return Verdict.ALLOW
    if thing.permission is None:
        return Verdict.HIDE
    return Verdict.ALLOW if thing.permission >= rule.needs else Verdict.FORBID


def require(principal: Principal | None, action: Action, thing: Thing = NOTHING_IN_PARTICULAR) -> None:
    """Raise NotSignedIn, NotPermitted or NotFound unless the policy allows it."""
    match verdict(principal, action, thing):
        case Verdict.ALLOW:
            return
        case Verdict.SIGN_IN:
            raise NotSignedIn("Sign in first: send a session or API token as `Authorization: Bearer …`.")
        case Verdict.FORBID:
            raise NotPermitted(f"You may not {action.value}: ask an administrator for the role or the grant.")
        case Verdict.HIDE:
            raise NotFound
