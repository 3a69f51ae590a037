"""Who asks: a signed-in user, and from where."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    ADMIN = "admin"
    OPERATOR = "operator"
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True)
class Principal:
    """A signed-in user on one request; `token_id` is the session or API token that proves it."""

    user_id: int
    username: str
    role: Role
    token_id: int
    address: str | None = None
    request_id: str | None = None
    use_is_due: bool = False
    """The token is an API token whose use was not written down within the last minute."""

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN
