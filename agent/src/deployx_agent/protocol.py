"""The words of the wire protocol: version, limits, what is signed, and what a server may say. Pure, no I/O.

The server imports this module and no other of the agent's; what an agent may say it reads with decoders of its own.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from deployx_agent.fields import Fields, ProtocolError, parse_instant, read_object
from deployx_agent.work import Work, parse_work

__all__ = ["ProtocolError", "parse_instant"]

PROTOCOL_VERSION = 1
FRAME_BYTES = 1024 * 1024
CHUNK_BYTES = 16 * 1024
UNACKNOWLEDGED_BYTES = 256 * 1024
SILENT_AFTER_SECONDS = 75
REASON_CHARACTERS = 2000
"""A longer sentence is cut by the agent: a server may refuse the whole message for it, again and again."""


def session_signing_input(installation_id: str, device_id: int, nonce: str) -> bytes:
    """What an agent signs to open a session; `nonce` as it stood in the challenge."""
    return f"deployx-agent-session:{PROTOCOL_VERSION}:{installation_id}:{device_id}:{nonce}".encode()


def order_signing_input(body: str) -> bytes:
    """What the server signs of a work order: its JSON text as it is sent."""
    return f"deployx-order:{PROTOCOL_VERSION}:{body}".encode()


@dataclass(frozen=True, slots=True)
class Challenge:
    """The server's first message; `nonce` is what the agent signs, as it stands."""

    protocol: int
    nonce: str
    installation_id: str
    server_time: datetime


@dataclass(frozen=True, slots=True)
class Welcome:
    session: str
    server_time: datetime
    heartbeat_seconds: float


@dataclass(frozen=True, slots=True)
class Refused:
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class SignedOrder:
    """An order as it travels; `parse_order` reads the body once the signature was found good."""

    body: str
    signature: str


@dataclass(frozen=True, slots=True)
class Cancel:
    order_id: str
    run_id: int


@dataclass(frozen=True, slots=True)
class OutputAck:
    order_id: str
    through: int


@dataclass(frozen=True, slots=True)
class FinishedAck:
    order_id: str


@dataclass(frozen=True, slots=True)
class HeartbeatAck:
    server_time: datetime


ServerMessage = Challenge | Welcome | Refused | SignedOrder | Cancel | OutputAck | FinishedAck | HeartbeatAck


@dataclass(frozen=True, slots=True)
class Order:
    """A work order as its signed body says; instants are aware UTC."""

    order_id: str
    run_id: int
    installation_id: str
    device_id: int
    epoch: int
    issued_at: datetime
    expires_at: datetime
    kind: str
    work: Work
    environment: Mapping[str, str]
    ticket: str | None = None


def decode(text: str) -> dict[str, Any]:
    """Read one frame: a JSON object with a `type`. Raises ProtocolError."""
    message = read_object(text, "a frame")
    if not isinstance(message.get("type"), str):
        raise ProtocolError(f"a frame is no object with a type: {text[:80]!r}")
    return message


def encode(message: Mapping[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)


def parse_server_message(text: str) -> ServerMessage:
    """Read one frame from the server; unknown keys are ignored. Raises ProtocolError, also for an unknown type."""
    message = decode(text)
    kind = message["type"]
    fields = Fields(message, kind)
    match kind:
        case "challenge":
            return Challenge(
                fields.number("protocol"), fields.text("nonce"), fields.text("installation_id"),
                fields.instant("server_time"),
            )  # fmt: skip
        case "welcome":
            return Welcome(
                fields.text("session"), fields.instant("server_time"), fields.number("heartbeat_seconds", at_least=1)
            )
        case "refused":
            return Refused(fields.text("code"), fields.text("detail"))
        case "order":
            return SignedOrder(fields.text("body"), fields.text("signature"))
        case "cancel":
            return Cancel(fields.text("order_id"), fields.number("run_id"))
        case "output_ack":
            return OutputAck(fields.text("order_id"), fields.number("through", at_least=-1))
        case "finished_ack":
            return FinishedAck(fields.text("order_id"))
        case "heartbeat_ack":
            return HeartbeatAck(fields.instant("server_time"))
        case _:
            raise ProtocolError(f"the server sent a message of the unknown type {kind[:40]!r}")


def parse_order(body: str) -> Order:
    """Read the body of an order, whose signature the caller has checked. Raises ProtocolError."""
    fields = Fields(read_object(body, "an order's body"), "order")
    kind = fields.text("kind")
    return Order(
        order_id=fields.text("order_id"),
        run_id=fields.number("run_id", at_least=1),
        installation_id=fields.text("installation_id"),
        device_id=fields.number("device_id"),
        epoch=fields.number("epoch"),
        issued_at=fields.instant("issued_at"),
        expires_at=fields.instant("expires_at"),
        kind=kind,
        work=parse_work(kind, fields.object("work")),
        environment=fields.strings("environment"),
        ticket=fields.optional_text("ticket"),
    )


def order_ids(body: str) -> tuple[str, int]:
    """Which order and run a body is about, for the refusal of one that is otherwise no good. Raises ProtocolError."""
    fields = Fields(read_object(body, "an order's body"), "order")
    return fields.text("order_id"), fields.number("run_id", at_least=1)


def from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError(f"{text[:40]!r} is not base64") from None
