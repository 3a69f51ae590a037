"""The one tree of errors that reach a person: each has a stable code, an HTTP status and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One rejected field: where it stands (`("body", "recurrence_config", "time")`) and what is wrong with it."""

    loc: tuple[str | int, ...]
    msg: str


class DeployXError(Exception):
    """Base of all errors that are answered to the caller; `detail` is one sentence."""

    code = "error"
    status = 500
    title = "Error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequest(DeployXError):
    code, status, title = "bad-request", 400, "Bad request"


class NotSignedIn(DeployXError):
    """Nothing proves who asks; `scheme` is the kind of proof that is wanted."""

    code, status, title = "not-signed-in", 401, "Not signed in"

    def __init__(self, detail: str, scheme: str = "Bearer") -> None:
        super().__init__(detail)
        self.scheme = scheme


class NotPermitted(DeployXError):
    code, status, title = "not-permitted", 403, "Not permitted"


class NotFound(DeployXError):
    """Unknown, or not visible to the caller: the two answer alike."""

    code, status, title = "not-found", 404, "Not found"

    def __init__(self, detail: str = "There is no such object, or it is not visible to you.") -> None:
        super().__init__(detail)


class Conflict(DeployXError):
    """The state of the object does not allow what was asked."""

    code, status, title = "conflict", 409, "Conflict"


class Stale(DeployXError):
    code, status, title = "stale", 412, "Changed meanwhile"


class TooLarge(DeployXError):
    code, status, title = "too-large", 413, "Too large"


class WrongContentType(DeployXError):
    code, status, title = "wrong-content-type", 415, "Wrong content type"


class RangeNotSatisfiable(DeployXError):
    """A part of a content was asked for that lies behind its end."""

    code, status, title = "range-not-satisfiable", 416, "Range not satisfiable"

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"The content has {size_bytes} bytes, and the range begins behind them: ask for less.")
        self.size_bytes = size_bytes


class FieldError(ValueError):
    """A rule across the fields of a body, with the field to point at."""

    def __init__(self, field: tuple[str | int, ...], why: str) -> None:
        super().__init__(why)
        self.field = field


class Invalid(DeployXError):
    """A body, query or path that breaks a rule; names each field."""

    code, status, title = "invalid", 422, "Invalid"

    def __init__(self, problems: Sequence[Problem]) -> None:
        first = problems[0]
        more = f" ({len(problems) - 1} more below.)" if len(problems) > 1 else ""
        super().__init__(f"{'.'.join(str(part) for part in first.loc[1:]) or first.loc[0]}: {first.msg}{more}")
        self.problems = tuple(problems)
        self.position: int | None = None
        """Which of several definitions it is about, counted from 0."""


class TooMany(DeployXError):
    code, status, title = "too-many", 429, "Too many requests"

    def __init__(self, detail: str, retry_after_seconds: int) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class NotReady(DeployXError):
    code, status, title = "not-ready", 503, "Not ready"


class StorageFull(DeployXError):
    """No room is left for what was to be stored; nothing of it was kept."""

    code, status, title = "storage-full", 507, "Insufficient storage"


class StartupRefused(DeployXError):
    """The program cannot start as it was asked to; the sentence says what to change."""

    code, status, title = "startup-refused", 500, "Refused to start"
