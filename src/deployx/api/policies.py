"""The policies that a task and a deployment share: how it goes out, and what is tried again."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from deployx.api.fields import Body
from deployx.api.problems import FieldError
from deployx.work.retry import RETRIED

MOST_SECONDS = 2_592_000

Percent = Annotated[str, Field(pattern=r"^(100|[1-9]?[0-9])%$")]
Share = Annotated[int, Field(ge=1, le=1_000_000)] | Annotated[str, Field(pattern=r"^(100|[1-9][0-9]?)%$")]
Delay = Annotated[int, Field(ge=0, le=MOST_SECONDS)]
Ending = Literal["failed", "rolled_back", "timed_out", "interrupted", "lost", "expired"]


class RolloutPolicy(Body):
    """Waves, a budget of failures, how many at once."""

    canary: Share | None = None
    batch_size: Share | None = None
    max_failures: Annotated[int, Field(ge=0, le=1_000_000)] | Percent = 0
    count_offline: bool = False
    pause_seconds: Delay = 0
    max_concurrent: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    splay_seconds: Delay = 0


class RetryPolicy(Body):
    """How often a device's share is tried, and how long is waited in between."""

    max_attempts: Annotated[int, Field(ge=1, le=100)] = 1
    initial_delay_seconds: Delay = 30
    multiplier: Annotated[float, Field(ge=1, le=100)] = 2
    max_delay_seconds: Delay = 3600
    jitter: bool = True
    on: Annotated[list[Ending], Field(min_length=1, max_length=10)] = list(RETRIED)

    @model_validator(mode="after")
    def _longest_is_not_shorter(self) -> Self:
        if self.max_delay_seconds < self.initial_delay_seconds:
            given = f"{self.max_delay_seconds} is less than initial_delay_seconds, {self.initial_delay_seconds}"
            raise FieldError(("retry", "max_delay_seconds"), f"{given}: give at least that.")
        return self
