"""The interactive description of this API, from assets of our own: no other origin is asked for anything."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

router = APIRouter(include_in_schema=False)

_FILES = resources.files("deployx.api") / "static"


@router.get("/api/docs")
async def docs() -> Response:
    return HTMLResponse((_FILES / "docs.html").read_text(encoding="utf-8"))


@router.get("/api/docs.js")
async def script() -> Response:
    return Response((_FILES / "docs.js").read_text(encoding="utf-8"), media_type="text/javascript")


@router.get("/")
async def front() -> Response:
    """Until the console is there, the front page leads to the description of the API."""
    return Response(status_code=307, headers={"Location": "/api/docs"})
