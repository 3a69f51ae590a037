"""Enrolment: open to whoever holds an activation key, and slow for whoever guesses."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from deployx.api.context import ServicesOf
from deployx.api.fields import Body
from deployx.db.database import Session
from deployx.errors import Invalid, NotSignedIn, Problem
from deployx.fleet import enrolment
from deployx.people import audit, sessions

router = APIRouter(prefix="/api/agent", tags=["agent"])

ACCOUNT = "activation key"
"""Under this name failed enrolments of an address are counted, as failed sign-ins are."""


class Enrolment(Body):
    activation_key: Annotated[str, Field(max_length=200)]
    public_key: Annotated[str, Field(max_length=100)]
    name: Annotated[str, Field(max_length=200)]
    facts: dict[str, Any] = {}


@router.post("/enroll", status_code=201)
async def enroll(body: Enrolment, request: Request, services: ServicesOf) -> dict[str, Any]:
    """Make a machine a device of this installation."""
    public_key = _public_key(body.public_key)
    state = request.scope["state"]
    address = state["address"] or "unknown"
    database = services.database

    async def add(session: Session) -> enrolment.Enrolled:
        now = await database.now(session)
        await sessions.require_few_failures(session, ACCOUNT, address, now=now)
        done = await enrolment.enroll(session, body.activation_key, public_key, body.name, body.facts, now=now)
        await audit.record(
            session, None, "enroll", "device", done.device_id, now=now, after={"name": done.device_name},
            address=state["address"], request_id=state["request_id"],
        )  # fmt: skip
        return done

    try:
        done = await database.transact(add)
    except NotSignedIn:
        await database.transact(lambda session: _count(session, address, services))
        raise
    server_key = services.installation.signing_key.public_key().public_bytes_raw()
    return {
        "device_id": done.device_id,
        "device_name": done.device_name,
        "installation_id": services.installation.id,
        "server_public_key": base64.b64encode(server_key).decode(),
    }


async def _count(session: Session, address: str, services: ServicesOf) -> None:
    await sessions.count_failure(session, ACCOUNT, address, now=await services.database.now(session))


def _public_key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise Invalid([Problem(("body", "public_key"), "This is no Ed25519 public key: 32 bytes in base64.")])
    return key
