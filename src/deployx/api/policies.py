"""The policies that a task and a deployment share: how it goes out, and what is tried again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from deployx.api.fields import Body
from deployx.errors import FieldError

MOST_SECONDS = 2_592_000

MOST_DEVICES = 1_000_000


def _devices(at_least: int) -> Callable[[Any], Any]:
    """A check of a number of devices or a whole percentage of them."""

    def check(value: Any) -> Any:
        number, most = value, MOST_DEVICES
        if isinstance(value, str):
            digits = value.removesuffix("%")
            is_percentage = value != digits and digits.isascii() and digits.isdigit() and len(digits) <= len("100")
            number, most = int(digits) if is_percentage else -1, 100
        if type(number) is not int or not at_least <= number <= most:
            right = f"give a number from {at_least} to {MOST_DEVICES}, or a percentage like '5%' up to '100%'"
            raise ValueError(f"{str(value)[:40]!r} is no number of devices: {right}")
        return value

    return check


Share = Annotated[int | str, BeforeValidator(_devices(1))]
Failures = Annotated[int | str, BeforeValidator(_devices(0))]
Delay = Annotated[int, Field(ge=0, le=MOST_SECONDS)]
Ending = Literal["failed", "rolled_back", "timed_out", "interrupted", "lost", "expired"]


class RolloutPolicy(Body):
    """Waves, a budget of failures, how many at once."""

    canary: Share | None = None
    batch_size: Share | None = None
    max_failures: Failures = 0
    count_offline: bool = False
    pause_seconds: Delay = 0
    max_concurrent: Annotated[int, Field(ge=1, le=MOST_DEVICES)] | None = None
    splay_seconds: Delay = 0


class RetryPolicy(Body):
    """How often a device's share is tried, and how long is waited in between."""

    max_attempts: Annotated[int, Field(ge=1, le=100)] = 1
    initial_delay_seconds: Delay = 30
    multiplier: Annotated[float, Field(ge=1, le=100)] = 2
    max_delay_seconds: Delay = 3600
    jitter: bool = True
    on: Annotated[list[Ending], Field(min_length=1, max_length=10)] = [
        "failed", "timed_out", "interrupted", "lost", "expired",
    ]  # fmt: skip

    @model_validator(mode="after")
    def _longest_is_not_shorter(self) -> Self:
        if self.max_delay_seconds < self.initial_delay_seconds:
            given = f"{self.max_delay_seconds} is less than initial_delay_seconds, {self.initial_delay_seconds}"
            raise FieldError(("max_delay_seconds",), f"{given}: give at least that.")
        return self
