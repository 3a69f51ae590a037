"""The messages that agents send, as checked values; the protocol's document names every field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Text = Annotated[str, msgspec.Meta(max_length=4096)]
OrderId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
RowId = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class Unfinished(msgspec.Struct, frozen=True):
    order_id: OrderId
    run_id: RowId
    state: str


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    protocol: int
    device_id: RowId
    signature: Text
    agent_version: Annotated[str, msgspec.Meta(max_length=40)]
    journal_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    facts: dict[str, Any]
    boot_id: Annotated[str, msgspec.Meta(max_length=200)] | None = None
    unfinished: list[Unfinished] = []


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    order_id: OrderId
    run_id: RowId


class Started(msgspec.Struct, frozen=True, tag="started"):
    order_id: OrderId
    run_id: RowId


class OutputChunk(msgspec.Struct, frozen=True):
    seq: Count
    step: Count
    stream: Literal["stdout", "stderr"]
    text: Annotated[str, msgspec.Meta(max_length=65_536)]


class Output(msgspec.Struct, frozen=True, tag="output"):
    order_id: OrderId
    run_id: RowId
    chunks: list[OutputChunk]


class StepResult(msgspec.Struct, frozen=True):
    index: Count
    kind: Annotated[str, msgspec.Meta(max_length=20)]
    status: Literal["succeeded", "failed", "timed_out", "skipped"]
    exit_code: int | None = None
    duration_seconds: float | None = None
    detail: Text | None = None


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    order_id: OrderId
    run_id: RowId
    status: Literal["succeeded", "failed", "rolled_back", "timed_out", "cancelled", "interrupted"]
    exit_code: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    reason: Text | None = None
    duration_seconds: float | None = None
    steps: list[StepResult] = []
    last_seq: int = -1
    truncated: bool = False
    replaced_bytes: bool = False
    reboot_required: bool = False
    known: bool = False
    receipt: dict[str, Any] | None = None


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    order_id: OrderId
    run_id: RowId
    reason: Text


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    pass


class Facts(msgspec.Struct, frozen=True, tag="facts"):
    facts: dict[str, Any]


Report = Accepted | Started | Output | Finished | Rejected
AgentMessage = Report | Heartbeat | Facts

decode_hello = msgspec.json.Decoder(Hello).decode
decode = msgspec.json.Decoder(AgentMessage).decode
encode = msgspec.json.Encoder().encode
