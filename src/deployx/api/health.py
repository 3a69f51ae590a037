"""Whether the process is up, whether it can work, and its metrics."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import JSONResponse

from deployx.api.context import CallerOf, ServicesOf
from deployx.people.policy import Action

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "up"}


@router.get("/readyz")
async def readyz(services: ServicesOf) -> Response:
    """503 with what is not reachable."""
    parts = {"database": "reachable", "bus": "in-process", "storage": "reachable"}
    try:
        async with services.database.read() as session:
            await session.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError) as error:
        parts["database"] = f"not reachable: {type(error).__name__}"
    if not _writable(services.settings.data_dir):
        parts["storage"] = "not reachable: the data folder is gone"
    ready = not any(state.startswith("not") for state in parts.values())
    content: dict[str, Any] = {"status": "ready" if ready else "not ready", **parts}
    return JSONResponse(content, 200 if ready else 503)


def _writable(folder: Path) -> bool:
    return folder.is_dir()


@router.get("/metrics")
async def metrics(request: Request, caller: CallerOf, services: ServicesOf) -> Response:
    """Prometheus' text format, for administrators and whoever holds METRICS_TOKEN."""
    wanted = services.settings.metrics_token
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if wanted is None or not hmac.compare_digest(given.encode(), wanted.encode()):
        caller.require(Action.METRICS)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
