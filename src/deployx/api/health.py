"""Whether the process is up, whether it can work, and its metrics."""

from __future__ import annotations

import asyncio
import hmac
import os

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from deployx.api.context import CallerOf, ServicesOf
from deployx.errors import NotReady
from deployx.people.policy import Action

router = APIRouter(tags=["health"])

ANSWERS_WITHIN_SECONDS = 5.0


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "up"}


@router.get("/readyz")
async def readyz(services: ServicesOf) -> dict[str, str]:
    """200 where this process can work; 503 says what is not reachable."""
    missing = []
    try:
        async with asyncio.timeout(ANSWERS_WITHIN_SECONDS), services.database.read() as session:
            await session.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError) as error:  # a timeout is an OSError too
        missing.append(f"the database is not reachable ({type(error).__name__})")
    try:
        async with asyncio.timeout(ANSWERS_WITHIN_SECONDS):
            await asyncio.to_thread(services.blobs.check)
    except OSError as error:
        missing.append(f"the storage cannot be written to ({error.strerror or type(error).__name__})")
    if not os.access(services.settings.data_dir, os.W_OK | os.X_OK):
        missing.append("the data folder cannot be written to")
    if missing:
        raise NotReady(f"This server cannot work: {', and '.join(missing)}.")
    return {"status": "ready", "database": "reachable", "bus": "in-process", "storage": "reachable"}


@router.get("/metrics")
async def metrics(request: Request, caller: CallerOf, services: ServicesOf) -> Response:
    """Prometheus' text format, for administrators and whoever holds METRICS_TOKEN."""
    wanted = services.settings.metrics_token
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if wanted is None or not hmac.compare_digest(given.encode(), wanted.encode()):
        caller.require(Action.METRICS)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
