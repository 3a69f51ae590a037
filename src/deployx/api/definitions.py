"""The bodies that define work: a task, a change of one, an ad-hoc deployment; and their way into specifications."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from deployx.api.fields import Body, IdList, InstantIn, Labels, Name
from deployx.api.policies import RetryPolicy, RolloutPolicy
from deployx.catalog.payloads import (
    FIELDS,
    CommandPayload,
    FilePayload,
    Payload,
    SoftwarePayload,
    stored,
)
from deployx.errors import FieldError, Invalid, Problem
from deployx.work.specs import TaskSpec

Seconds = Annotated[int, Field(ge=1, le=2_592_000)]
TaskType = Literal["command", "software_deployment", "file_deployment"]
RecurrenceType = Literal["once", "daily", "weekly", "monthly", "interval", "custom", "after"]


class TaskFields(Body):
    """Every field of a definition, each optional; null stands for the default."""

    task_name: Name | None = None
    task_type: TaskType | None = None
    scheduled_time: InstantIn | None = None
    recurrence_type: RecurrenceType | None = None
    recurrence_config: dict[str, Any] | None = None
    timezone: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    device_ids: IdList | None = None
    group_ids: IdList | None = None
    command_payload: CommandPayload | None = None
    software_payload: SoftwarePayload | None = None
    file_payload: FilePayload | None = None
    misfire_grace_seconds: Seconds | None = None
    catch_up: Literal["latest", "all", "none"] | None = None
    max_instances: Annotated[int, Field(ge=1, le=100)] | None = None
    overlap_policy: Literal["skip", "queue", "cancel_running"] | None = None
    jitter_seconds: Annotated[int, Field(ge=0, le=2_592_000)] | None = None
    offline_policy: Literal["wait", "fail"] | None = None
    offline_deadline_seconds: Seconds | None = None
    lost_after_seconds: Seconds | None = None
    window_ids: Annotated[IdList, Field(max_length=100)] | None = None
    blackout_ids: Annotated[IdList, Field(max_length=100)] | None = None
    outside_window: Literal["delay", "skip"] | None = None
    pause_on_failure: bool | None = None
    rollout: RolloutPolicy | None = None
    retry: RetryPolicy | None = None
    labels: Labels | None = None


class NewTask(TaskFields):
    """What `POST /tasks` takes."""

    task_name: Name
    task_type: TaskType

    @model_validator(mode="after")
    def _whole(self) -> Self:
        require_payload(self, self.task_type, "task")
        return self


class TaskChange(TaskFields):
    """What `PUT /tasks/{id}` takes: any subset, and a move to another status."""

    status: Literal["pending", "running", "completed", "failed", "cancelled", "paused"] | None = None


class Preview(TaskFields):
    """What `POST /preview` takes; name, payload and targets may be absent."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        refuse_other_payloads(self, self.kind, "task")
        return self

    @property
    def kind(self) -> str:
        """The type of task; where none is given, the payload tells it."""
        given = (kind for kind in FIELDS if payload_of(self, kind) is not None)
        return self.task_type or next(given, DEFAULTS.task_type)


class NewDeployment(Body):
    """What `POST /api/deployments` takes."""

    deployment_type: TaskType
    deployment_name: Name | None = None
    command_payload: CommandPayload | None = None
    software_payload: SoftwarePayload | None = None
    file_payload: FilePayload | None = None
    device_ids: IdList = []
    group_ids: IdList = []
    offline_policy: Literal["wait", "fail"] = "wait"
    offline_deadline_seconds: Seconds = 300
    lost_after_seconds: Seconds = 600
    rollout: RolloutPolicy | None = None
    retry: RetryPolicy | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        require_payload(self, self.deployment_type, "deployment")
        return self

    @property
    def payload(self) -> Payload:
        found = payload_of(self, self.deployment_type)
        assert found is not None
        return found


def payload_of(body: TaskFields | NewDeployment, kind: str) -> Payload | None:
    found: Payload | None = getattr(body, FIELDS[kind])
    return found


def refuse_other_payloads(body: TaskFields | NewDeployment, kind: str, what: str) -> None:
    """Raise FieldError where the body has the payload of another type."""
    for other, name in FIELDS.items():
        if other != kind and getattr(body, name) is not None:
            raise FieldError((name,), f"A {what} of type {kind!r} has no {name}: give {FIELDS[kind]}.")


def require_payload(body: TaskFields | NewDeployment, kind: str, what: str) -> None:
    """Raise FieldError unless the body has the payload of this type, and no other."""
    refuse_other_payloads(body, kind, what)
    if payload_of(body, kind) is None:
        raise FieldError((FIELDS[kind],), f"A {what} of type {kind!r} needs a {FIELDS[kind]}.")


DEFAULTS = TaskSpec(
    task_name="",
    task_type="command",
    scheduled_time=None,
    recurrence_type="once",
    recurrence_config=None,
    timezone="UTC",
    device_ids=(),
    group_ids=(),
    payload={},
    labels={},
)


def applied(body: TaskFields, to: TaskSpec) -> TaskSpec:
    """The definition with what the body names; a field given as null goes back to its default."""
    values: dict[str, Any] = {}
    for name in body.model_fields_set - {"status", *FIELDS.values()}:
        value = getattr(body, name)
        value = value.model_dump(mode="json") if isinstance(value, RolloutPolicy | RetryPolicy) else value
        values[name] = getattr(DEFAULTS, name) if value is None else value
    for name in ("device_ids", "group_ids", "window_ids", "blackout_ids"):
        if name in values:
            values[name] = tuple(sorted(values[name]))
    if isinstance(body, Preview):
        values["task_type"] = body.kind
    payload = _new_payload(body, values.get("task_type", to.task_type), to)
    if payload is not None:
        values["payload"] = stored(payload)
    if values.get("recurrence_type", to.recurrence_type) != to.recurrence_type:
        values.setdefault("recurrence_config", None)
    if values.get("task_name") == "":
        raise Invalid([Problem(("body", "task_name"), "A task has a name: write one.")])
    return replace(to, **values)


def _new_payload(body: TaskFields, kind: str, to: TaskSpec) -> Payload | None:
    """The payload that the body brings. Raises Invalid where a change needs one, or brings one of another type."""
    if isinstance(body, TaskChange):
        try:
            if kind != to.task_type:
                require_payload(body, kind, "task")
            else:
                refuse_other_payloads(body, kind, "task")
        except FieldError as error:
            raise Invalid([Problem(("body", *error.field), str(error))]) from None
    return payload_of(body, kind)
