"""The messages that tell a server what became of an order, built from what the journal holds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deployx_agent.journal import Entry
from deployx_agent.process import Receipt
from deployx_agent.protocol import REASON_CHARACTERS

_STATES = {"accepted": "accepted", "starting": "running", "rebooting": "running", "ended": "ended"}
UNFINISHED_AT_MOST = 1000
"""As many as fit into a hello; what is left out the server sends again, and is answered from the journal."""


def ending(status: str, reason: str, receipt: Receipt | None = None, *, last_seq: int = -1) -> dict[str, Any]:
    """The result of an order that did not come to its own end."""
    return {
        "status": status, "exit_code": None, "reason": reason[:REASON_CHARACTERS], "duration_seconds": None,
        "steps": [], "truncated": False, "replaced_bytes": False, "reboot_required": False, "last_seq": last_seq,
        "receipt": receipt.as_message() if receipt else None,
    }  # fmt: skip


def finished(entry: Entry) -> dict[str, Any]:
    """The `finished` message of an ended order; where the server acknowledged it before, only its status is left."""
    about = {"type": "finished", "order_id": entry.order_id, "run_id": entry.run_id, "known": entry.acknowledged}
    return about | ending("", "") | {"reason": None} | dict(entry.result or {})


def progress(kind: str, order_id: str, run_id: int) -> dict[str, Any]:
    """`accepted` or `started`."""
    return {"type": kind, "order_id": order_id, "run_id": run_id}


def rejected(order_id: str, run_id: int, reason: str) -> dict[str, Any]:
    return progress("rejected", order_id, run_id) | {"reason": reason[:REASON_CHARACTERS]}


def unfinished(entries: Sequence[Entry]) -> list[Mapping[str, Any]]:
    """What a hello tells of orders under way or unacknowledged; those not ended come first."""
    ordered = sorted(entries, key=lambda one: one.state == "ended")[:UNFINISHED_AT_MOST]
    return [{"order_id": one.order_id, "run_id": one.run_id, "state": _STATES[one.state]} for one in ordered]
