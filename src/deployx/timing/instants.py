"""Instants as text: reads and writes RFC 3339 in UTC, and leaves wall clocks and time zones to `zones`."""

import re
from datetime import UTC, date, datetime, timedelta, timezone

FIRST_YEAR = 1970
LAST_YEAR = 9999

# RFC 3339 asks for seconds; ISO 8601 and the date fields of browsers leave them out, and nothing else can be meant.
_INSTANT = re.compile(
    r"(?P<date>\d{4}-\d{2}-\d{2})[Tt ](?P<hour>\d{2}):(?P<minute>\d{2})"
    r"(?::(?P<second>\d{2})(?:\.(?P<fraction>\d{1,9}))?)?"
    r"(?P<offset>[Zz]|[+-]\d{2}:\d{2})?",
    re.ASCII,
)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_EXAMPLE = "write it like 2026-11-23T02:00:00Z"


class InstantError(ValueError):
    """A text that names no instant; the message quotes it and says what to write instead."""


def parse_instant(text: str) -> datetime:
    """Read an RFC 3339 instant as aware UTC.

    Without an offset it is UTC. Digits beyond microseconds are dropped. Raises InstantError.
    """
    found = _INSTANT.fullmatch(text)
    if found is None:
        raise InstantError(_why_not_an_instant(text))
    fraction = (found["fraction"] or "").ljust(6, "0")[:6]
    try:
        wall = datetime.combine(date.fromisoformat(found["date"]), datetime.min.time()).replace(
            hour=int(found["hour"]),
            minute=int(found["minute"]),
            second=int(found["second"] or 0),
            microsecond=int(fraction),
        )
        moment = wall.replace(tzinfo=_offset(found["offset"])).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InstantError(f"'{_short(text)}' is not an instant: {error}; {_EXAMPLE}") from error
    if moment.year < FIRST_YEAR:
        raise InstantError(f"'{_short(text)}' lies before {FIRST_YEAR}; use a year from {FIRST_YEAR} to {LAST_YEAR}")
    return moment


def parse_date(text: str) -> date:
    """Read a calendar date "YYYY-MM-DD" of the years 1970 to 9999. Raises InstantError."""
    if _DATE.fullmatch(text) is None:
        raise InstantError(f"'{_short(text)}' is not a date; write it like 2026-11-23")
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise InstantError(f"'{text}' is not a date: {error}; write it like 2026-11-23") from error
    if day.year < FIRST_YEAR:
        raise InstantError(f"'{text}' lies before {FIRST_YEAR}; use a year from {FIRST_YEAR} to {LAST_YEAR}")
    return day


def is_date(text: str) -> bool:
    """Tell a bare date from an instant by its shape alone; the date may still not exist."""
    return _DATE.fullmatch(text) is not None


def format_instant(moment: datetime) -> str:
    """Write an aware datetime as `2026-11-23T02:00:00Z`, with microseconds only where they are not zero."""
    if moment.utcoffset() is None:
        raise ValueError(f"{moment!r} has no time zone; pass an aware datetime")
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def _offset(text: str | None) -> timezone:
    if text is None or text in "Zz":
        return UTC
    hours, minutes = int(text[1:3]), int(text[4:6])
    if hours > 23 or minutes > 59:
        raise ValueError(f"offset {text} is out of range")
    size = timedelta(hours=hours, minutes=minutes)
    return timezone(-size if text[0] == "-" else size)


def _why_not_an_instant(text: str) -> str:
    if is_date(text):
        return f"'{text}' is a date without a time; {_EXAMPLE}"
    return f"'{_short(text)}' is not an instant; {_EXAMPLE}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"
