"""The contents that agents fetch: no sign-in, but the ticket of a work order, which names device, digests and end."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from sqlalchemy import select

from deployx.api import contents
from deployx.api.context import ServicesOf
from deployx.catalog import files, tickets
from deployx.catalog.blobs import Blob, is_digest
from deployx.db.schema import devices
from deployx.errors import NotFound, NotSignedIn

router = APIRouter(prefix="/api/agent/files", tags=["agent"])


@router.get("/{sha256}", response_class=Response)
async def fetch(sha256: str, request: Request, services: ServicesOf) -> Response:
    """A content, or a range of it, for the device of a ticket; whether it is still one of ours is asked each time."""
    scheme, _, ticket = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != tickets.SCHEME.lower() or not ticket:
        raise NotSignedIn("Send the ticket of the work order as `Authorization: Ticket …`.", tickets.SCHEME)
    if not is_digest(sha256):
        raise NotFound
    public_key = services.installation.signing_key.public_key()
    async with services.database.read() as session:
        now = await services.database.now(session)
        device_id = tickets.check(public_key, ticket.strip(), sha256, now)
        living = select(devices.c.id).where(devices.c.id == device_id, devices.c.deleted_at.is_(None))
        if (await session.execute(living)).first() is None:
            raise NotSignedIn("The device of this ticket was removed.", tickets.SCHEME)
        size_bytes = await files.known(session, sha256)
    if size_bytes is None:
        raise NotFound("This content is gone: no file has it any more.")
    return await contents.answer(request, services.blobs, Blob(sha256, size_bytes), None)
