"""The one policy function, as a table of every action × who asks × what it is about."""

from __future__ import annotations

import pytest

from deployx.errors import NotFound, NotPermitted, NotSignedIn
from deployx.people.grants import Permission
from deployx.people.policy import RULES, Action, Thing, Verdict, require, verdict
from deployx.people.principal import Principal, Role

ADMIN = Principal(1, "admin", Role.ADMIN, 1)
OPERATOR = Principal(2, "olga", Role.OPERATOR, 2)
VIEWER = Principal(3, "vera", Role.VIEWER, 3)

ABSENT = Thing(exists=False)
FOREIGN = Thing()
VIEWED, RUNNABLE, MANAGED = (Thing(permission=one) for one in Permission)
A, F, H = Verdict.ALLOW, Verdict.FORBID, Verdict.HIDE

THINGS = (ABSENT, FOREIGN, VIEWED, RUNNABLE, MANAGED)
OPERATORS: dict[Action, tuple[Verdict, ...]] = {
    Action.OWN_ACCOUNT: (H, H, A, A, A),
    Action.USERS: (F, F, F, F, F),
    Action.AUDIT: (F, F, F, F, F),
    Action.METRICS: (F, F, F, F, F),
    Action.KEYS: (H, H, F, F, A),
    Action.DEVICE_READ: (H, H, A, A, A),
    Action.DEVICE_NAME: (F, F, F, F, F),
    Action.DEVICE_MANAGE: (H, H, F, F, A),
    Action.GROUP_ADMIN: (F, F, F, F, F),
    Action.GROUP_READ: (H, H, A, A, A),
    Action.GROUP_MANAGE: (H, H, F, F, A),
    Action.WORK_READ: (H, H, A, A, A),
    Action.WORK_CREATE: (H, H, F, A, A),
    Action.WORK_CHANGE: (H, H, F, F, A),
    Action.CATALOGUE_READ: (H, H, A, A, A),
    Action.CATALOGUE_CREATE: (H, H, A, A, A),
    Action.CATALOGUE_CHANGE: (H, H, F, F, A),
}
READS = frozenset({Action.OWN_ACCOUNT, Action.DEVICE_READ, Action.GROUP_READ, Action.WORK_READ, Action.CATALOGUE_READ})


def test_the_table_and_the_rules_name_every_action() -> None:
    assert set(OPERATORS) == set(RULES) == set(Action)


@pytest.mark.parametrize("action", list(Action), ids=lambda action: action.name)
def test_an_operator_may_what_the_grant_on_the_thing_allows(action: Action) -> None:
    assert tuple(verdict(OPERATOR, action, thing) for thing in THINGS) == OPERATORS[action]


@pytest.mark.parametrize("action", list(Action), ids=lambda action: action.name)
def test_a_viewer_reads_and_for_all_else_foreign_and_absent_things_answer_alike(action: Action) -> None:
    expected = (H, H, A, A, A) if action in READS else (F,) * 5
    assert tuple(verdict(VIEWER, action, thing) for thing in THINGS) == expected


@pytest.mark.parametrize("action", list(Action), ids=lambda action: action.name)
def test_an_administrator_may_do_anything_with_what_exists(action: Action) -> None:
    assert [verdict(ADMIN, action, thing) for thing in THINGS] == [H, A, A, A, A]


@pytest.mark.parametrize("action", list(Action), ids=lambda action: action.name)
def test_nobody_is_asked_to_sign_in_whatever_it_is_about(action: Action) -> None:
    assert {verdict(None, action, thing) for thing in THINGS} == {Verdict.SIGN_IN}


def test_an_owner_changes_its_work_without_a_grant_unless_the_role_never_may() -> None:
    assert verdict(OPERATOR, Action.WORK_CHANGE, Thing(owner_id=OPERATOR.user_id)) is A
    assert verdict(OPERATOR, Action.WORK_CHANGE, Thing(owner_id=VIEWER.user_id)) is H
    assert verdict(VIEWER, Action.WORK_CHANGE, Thing(owner_id=VIEWER.user_id)) is F
    assert verdict(VIEWER, Action.WORK_READ, Thing(owner_id=VIEWER.user_id)) is A


def test_each_refusal_is_raised_as_its_error() -> None:
    require(ADMIN, Action.USERS)
    with pytest.raises(NotSignedIn, match="Sign in first"):
        require(None, Action.USERS)
    with pytest.raises(NotPermitted, match="administer users"):
        require(VIEWER, Action.USERS)
    with pytest.raises(NotFound):
        require(OPERATOR, Action.WORK_READ, FOREIGN)


def test_each_permission_includes_the_ones_before_it() -> None:
    view, run, manage = Permission
    assert view < run < manage
    assert manage >= run >= view
    assert not run < run
