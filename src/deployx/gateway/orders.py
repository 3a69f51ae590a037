"""Work orders: what a device is told to do, signed so that it can check who says so."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import RowMapping

from deployx.catalog import tickets
from deployx.catalog.payloads import COMMAND, command_work
from deployx.catalog.resolution import digests_of
from deployx.timing.instants import format_instant
from deployx_agent import protocol

ORDER_LIFETIME = timedelta(minutes=10)
"""How long an order may lie on the wire before the device refuses it; it is signed anew when it is sent again."""


TICKET_LIFETIME = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Work:
    """What many orders of a batch have in common, encoded once; `digests` are the contents that it fetches."""

    kind: str
    encoded: msgspec.Raw
    digests: Sequence[str] = ()

    @classmethod
    def of(cls, payload: Mapping[Any, Any], resolved: Mapping[str, Any] | None) -> Work:
        """A stored payload; files and software are sent as they were resolved when the deployment started."""
        work = command_work(payload["body"]) if payload["kind"] == COMMAND else resolved
        assert work is not None
        return cls(payload["kind"], msgspec.Raw(msgspec.json.encode(work)), sorted(set(digests_of(work))))


class OrderSigner:
    """Builds and signs orders."""

    def __init__(self, installation_id: str, epoch: int, key: Ed25519PrivateKey) -> None:
        self._installation_id = installation_id
        self._epoch = epoch
        self._key = key

    def order(self, run: RowMapping, work: Work, *, now: datetime) -> dict[str, Any]:
        """The message that carries one order; `run` as `device_runs.claim_queued` gives it."""
        body = msgspec.json.encode(
            {
                "order_id": run["order_id"],
                "run_id": run["run_id"],
                "installation_id": self._installation_id,
                "device_id": run["device_id"],
                "epoch": self._epoch,
                "issued_at": format_instant(now),
                "expires_at": format_instant(now + ORDER_LIFETIME),
                "kind": work.kind,
                "work": work.encoded,
                "ticket": self._ticket(run["device_id"], work, now),
                "environment": _environment(run),
            }
        ).decode()
        signature = self._key.sign(protocol.order_signing_input(body))
        return {"type": "order", "body": body, "signature": base64.b64encode(signature).decode()}

    def _ticket(self, device_id: int, work: Work, now: datetime) -> str | None:
        return tickets.issue(self._key, device_id, work.digests, now + TICKET_LIFETIME) if work.digests else None


def _environment(run: RowMapping) -> dict[str, str]:
    values = {
        "DEPLOYX_DEVICE_ID": run["device_id"],
        "DEPLOYX_DEVICE_NAME": run["device_name"],
        "DEPLOYX_TASK_ID": run["task_id"],
        "DEPLOYX_EXECUTION_ID": run["execution_id"],
        "DEPLOYX_DEPLOYMENT_ID": run["deployment_id"],
        "DEPLOYX_PLANNED_FOR": format_instant(run["planned_for"]) if run["planned_for"] else None,
        "DEPLOYX_ATTEMPT": run["attempt"],
    }
    return {name: str(value) for name, value in values.items() if value is not None}
