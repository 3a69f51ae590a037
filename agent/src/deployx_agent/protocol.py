"""The words of the wire protocol that both sides must agree on to the byte: version, limits and what is signed. Pure.

The server imports this module and no other of the agent's.
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


class ProtocolError(ValueError):
    """A message that breaks the protocol; the sentence names the field and its value."""


def session_signing_input(installation_id: str, device_id: int, nonce: str) -> bytes:
    """What an agent signs to open a session; `nonce` as it stood in the challenge."""
    return f"deployx-agent-session:{PROTOCOL_VERSION}:{installation_id}:{device_id}:{nonce}".encode()


def order_signing_input(body: str) -> bytes:
    """What the server signs of a work order: its JSON text as it is sent."""
    return f"deployx-order:{PROTOCOL_VERSION}:{body}".encode()


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
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame is not JSON: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError(f"a frame is no object with a type: {text[:80]!r}")
    return message


def encode(message: Mapping[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)


def parse_order(body: str) -> Order:
    """Read the body of an order, whose signature the caller has checked. Raises ProtocolError."""
    fields = Fields(decode_object(body), "order")
    work = Fields(fields.value("work", dict), "order.work")
    return Order(
        order_id=fields.value("order_id", str),
        run_id=fields.value("run_id", int),
        installation_id=fields.value("installation_id", str),
        device_id=fields.value("device_id", int),
        epoch=fields.value("epoch", int),
        issued_at=fields.instant("issued_at"),
        expires_at=fields.instant("expires_at"),
        kind=fields.value("kind", str),
        work=Work(
            shell=work.value("shell", str),
            strategy=work.value("strategy", str),
            stop_on_failure=work.value("stop_on_failure", bool),
            steps=tuple(_step(item) for item in work.value("steps", list)),
            env=work.strings("env"),
            working_directory=work.optional("working_directory", str),
            run_as=work.optional("run_as", str),
            success_exit_codes=tuple(work.value("success_exit_codes", list)),
            output_limit_bytes=work.value("output_limit_bytes", int),
        ),
        environment=fields.strings("environment"),
    )


def decode_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"an order's body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError("an order's body is no JSON object")
    return value


def parse_instant(text: str) -> datetime:
    """An RFC 3339 instant with an offset. Raises ProtocolError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ProtocolError(f"{text!r} is no instant") from None
    if moment.tzinfo is None:
        raise ProtocolError(f"{text!r} has no offset")
    return moment.astimezone(UTC)


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
            raise ProtocolError(f"{self._what}.{name} is {found!r}, not {kind.__name__}")
        return found

    def optional(self, name: str, kind: type) -> Any:
        return None if self._values.get(name) is None else self.value(name, kind)

    def instant(self, name: str) -> datetime:
        return parse_instant(self.value(name, str))

    def strings(self, name: str) -> Mapping[str, str]:
        found: dict[str, str] = self.value(name, dict)
        for key, value in found.items():
            if not isinstance(value, str):
                raise ProtocolError(f"{self._what}.{name}.{key} is {value!r}, not a string")
        return found


def _step(item: object) -> Step:
    if not isinstance(item, dict):
        raise ProtocolError(f"order.work.steps holds {item!r}, not an object")
    fields = Fields(item, "order.work.steps")
    return Step(
        index=fields.value("index", int),
        run=fields.value("run", str),
        rollback=fields.optional("rollback", str),
        timeout_seconds=fields.value("timeout_seconds", int),
    )
