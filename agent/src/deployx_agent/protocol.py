"""The words of the wire protocol: version, limits, what is signed, and what a server may say. Pure, no I/O.

The server imports this module and no other of the agent's; what an agent may say it reads with decoders of its own.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

PROTOCOL_VERSION = 1
FRAME_BYTES = 1024 * 1024
CHUNK_BYTES = 16 * 1024
UNACKNOWLEDGED_BYTES = 256 * 1024
SILENT_AFTER_SECONDS = 75
REASON_CHARACTERS = 2000
"""A longer sentence is cut by the agent: a server may refuse the whole message for it, again and again."""

LARGEST_NUMBER = 2**63 - 1
STRATEGIES = ("transactional", "best_effort")


class ProtocolError(ValueError):
    """A message that breaks the protocol; the sentence names the field and its value."""


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
class Step:
    """One command of an order, with what undoes it."""

    index: int
    run: str
    rollback: str | None
    timeout_seconds: int


@dataclass(frozen=True, slots=True)
class Work:
    """What an order of kind `command` runs."""

    shell: str
    strategy: str
    stop_on_failure: bool
    steps: tuple[Step, ...]
    env: Mapping[str, str]
    working_directory: str | None
    run_as: str | None
    success_exit_codes: tuple[int, ...]
    output_limit_bytes: int


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


def decode(text: str) -> dict[str, Any]:
    """Read one frame: a JSON object with a `type`. Raises ProtocolError."""
    message = _object(text, "a frame")
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
    fields = Fields(_object(body, "an order's body"), "order")
    return Order(
        order_id=fields.text("order_id"),
        run_id=fields.number("run_id", at_least=1),
        installation_id=fields.text("installation_id"),
        device_id=fields.number("device_id"),
        epoch=fields.number("epoch"),
        issued_at=fields.instant("issued_at"),
        expires_at=fields.instant("expires_at"),
        kind=fields.text("kind"),
        work=_work(Fields(fields.value("work", dict), "order.work")),
        environment=fields.strings("environment"),
    )


def order_ids(body: str) -> tuple[str, int]:
    """Which order and run a body is about, for the refusal of one that is otherwise no good. Raises ProtocolError."""
    fields = Fields(_object(body, "an order's body"), "order")
    return fields.text("order_id"), fields.number("run_id", at_least=1)


def parse_instant(text: str) -> datetime:
    """An RFC 3339 instant with an offset. Raises ProtocolError."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ProtocolError(f"{text!r} has no offset")
        return moment.astimezone(UTC)
    except ProtocolError:
        raise
    except (ValueError, OverflowError):
        raise ProtocolError(f"{text[:40]!r} is no instant") from None


def from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError(f"{text[:40]!r} is not base64") from None


class Fields:
    """The fields of one object, read with their types; a wrong one raises ProtocolError that names it."""

    def __init__(self, values: Mapping[str, Any], what: str) -> None:
        self._values = values
        self._what = what

    def value(self, name: str, kind: type) -> Any:
        found = self._values.get(name)
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise ProtocolError(f"{self._what}.{name} is {_short(found)}, not {kind.__name__}")
        return found

    def text(self, name: str) -> str:
        found: str = self.value(name, str)
        return found

    def number(self, name: str, *, at_least: int = 0) -> int:
        found: int = self.value(name, int)
        if not at_least <= found <= LARGEST_NUMBER:
            raise ProtocolError(f"{self._what}.{name} is {_short(found)}, not between {at_least} and {LARGEST_NUMBER}")
        return found

    def optional_text(self, name: str) -> str | None:
        return None if self._values.get(name) is None else self.text(name)

    def instant(self, name: str) -> datetime:
        return parse_instant(self.text(name))

    def strings(self, name: str) -> Mapping[str, str]:
        found: dict[str, str] = self.value(name, dict)
        for key, value in found.items():
            if not isinstance(value, str):
                raise ProtocolError(f"{self._what}.{name}.{key} is {_short(value)}, not a string")
        return found


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"{what} is {_short(value)}, not a JSON object")
    return value


def _work(fields: Fields) -> Work:
    strategy = fields.text("strategy")
    if strategy not in STRATEGIES:
        raise ProtocolError(f"order.work.strategy is {_short(strategy)}, not one of {', '.join(STRATEGIES)}")
    codes = fields.value("success_exit_codes", list)
    if not all(type(code) is int for code in codes):
        raise ProtocolError(f"order.work.success_exit_codes is {_short(codes)}, not a list of numbers")
    return Work(
        shell=fields.text("shell"),
        strategy=strategy,
        stop_on_failure=fields.value("stop_on_failure", bool),
        steps=tuple(_step(item) for item in fields.value("steps", list)),
        env=fields.strings("env"),
        working_directory=fields.optional_text("working_directory"),
        run_as=fields.optional_text("run_as"),
        success_exit_codes=tuple(codes),
        output_limit_bytes=fields.number("output_limit_bytes"),
    )


def _step(item: object) -> Step:
    if not isinstance(item, dict):
        raise ProtocolError(f"order.work.steps holds {_short(item)}, not an object")
    fields = Fields(item, "order.work.steps")
    return Step(
        index=fields.number("index"),
        run=fields.text("run"),
        rollback=fields.optional_text("rollback"),
        timeout_seconds=fields.number("timeout_seconds", at_least=1),
    )


def _short(value: object) -> str:
    words = repr(value)
    return words if len(words) <= 80 else words[:80] + "…"
