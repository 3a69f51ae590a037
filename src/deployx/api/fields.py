"""The kinds of fields that requests and answers are made of; strict, bounded, and forbidding what is unknown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from deployx.timing.instants import parse_instant

BIGGEST_ID = 2**63 - 1


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Query(BaseModel):
    """A request's query; its values are text, so they are converted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                _without_nul(text)
        return value


def _clean_name(value: str) -> str:
    trimmed = value.strip()
    if not trimmed:
        raise ValueError("is empty: write a name")
    if not all(character.isprintable() for character in trimmed):
        raise ValueError("holds control characters: remove them")
    return trimmed


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL character: remove it")
    return value


def _as_instant(value: Any) -> Any:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise ValueError(f"write an instant as text, like 2026-11-23T02:00:00Z, not {type(value).__name__}")
    return parse_instant(value)


def _each_once(values: list[int]) -> list[int]:
    return list(dict.fromkeys(values))


Text = Annotated[str, AfterValidator(_without_nul)]
Name = Annotated[str, Field(max_length=200), AfterValidator(_clean_name)]
Description = Annotated[str, Field(max_length=2000), AfterValidator(_without_nul)]
Id = Annotated[int, Field(ge=1, le=BIGGEST_ID)]
IdList = Annotated[list[Id], Field(max_length=10_000), AfterValidator(_each_once)]
InstantIn = Annotated[datetime, BeforeValidator(_as_instant)]
LabelText = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_without_nul)]
LabelValue = Annotated[str, Field(max_length=200), AfterValidator(_without_nul)]
Labels = Annotated[dict[LabelText, LabelValue], Field(max_length=50)]
