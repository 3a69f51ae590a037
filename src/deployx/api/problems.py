"""Every error as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from deployx.errors import (
    BadRequest,
    DeployXError,
    FieldError,
    Invalid,
    NotFound,
    NotReady,
    NotSignedIn,
    Problem,
    RangeNotSatisfiable,
    TooMany,
)

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"

_ERROR = {
    "type": "object",
    "required": ["loc", "msg"],
    "properties": {
        "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
        "msg": {"type": "string"},
    },
}
DESCRIBED: dict[str, Any] = {
    "description": "What was wrong, and what would be right.",
    "content": {
        MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "detail"],
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                    "errors": {"type": "array", "items": _ERROR},
                },
            }
        }
    },
}
"""Every error's shape, for the description of the API."""


def answer(error: DeployXError) -> Response:
    """The answer for one error of the tree."""
    body: dict[str, Any] = {
        "type": f"/api/docs#problem-{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }
    headers = {}
    if isinstance(error, Invalid):
        body["errors"] = [{"loc": list(problem.loc), "msg": problem.msg} for problem in error.problems]
    if isinstance(error, TooMany):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, NotSignedIn):
        headers["WWW-Authenticate"] = error.scheme
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    return JSONResponse(body, error.status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make the application answer all its errors this way."""
    app.add_exception_handler(DeployXError, _own)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _of_the_router)
    for lost in (DBAPIError, NoConnectionLeft, ConnectionError, TimeoutError, socket.gaierror):
        app.add_exception_handler(lost, _of_the_database)
    app.add_exception_handler(Exception, _unexpected)


async def _own(_request: Request, error: Exception) -> Response:
    assert isinstance(error, DeployXError)
    return answer(error)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(one["loc"] == ("body",) and one["type"] == "missing" for one in found):
        return answer(BadRequest("The body is empty: send a JSON object."))
    if any(one["loc"][0] == "path" for one in found):
        return answer(NotFound())
    return answer(Invalid(problems_of(found)))


def problems_of(found: Sequence[Any]) -> list[Problem]:
    """Pydantic's errors in our words: its location without the names of internal types."""
    return [Problem(_place(one), _sentence(one)) for one in found]


_UNION_TAGS = frozenset({"str", "int", "dict[str,any]", "list", "constrained-str"})


def _place(one: Any) -> tuple[str | int, ...]:
    place = tuple(part for part in one["loc"] if not (isinstance(part, str) and part.startswith(("function-", "<"))))
    if place and place[-1] in _UNION_TAGS:
        place = place[:-1]
    if one["type"] == "value_error" and isinstance(one.get("ctx", {}).get("error"), FieldError):
        place = (*place, *one["ctx"]["error"].field)
    return place


def _sentence(one: Any) -> str:
    if one["type"] == "extra_forbidden":
        return f"There is no field {one['loc'][-1]!r} here: check its spelling."
    if one["type"] == "missing":
        return "This field is required."
    message = str(one["msg"]).removeprefix("Value error, ")
    given = one.get("input")
    shown = repr(given) if isinstance(given, str | int | float | bool) or given is None else type(given).__name__
    sentence = message[:1].upper() + message[1:]
    return sentence if one["type"] == "value_error" else f"{sentence}; got {shown[:100]}."


async def _of_the_router(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return answer(NotFound())
    if error.status_code == HTTPStatus.BAD_REQUEST:
        return answer(BadRequest("The body is not JSON: send a JSON object."))
    title = HTTPStatus(error.status_code).phrase
    detail = f"{title}."
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not possible at {request.url.path}: see /api/docs for what is."
    body = {"type": "about:blank", "title": title, "status": error.status_code, "detail": detail}
    return JSONResponse(body, error.status_code, error.headers, MEDIA_TYPE)


async def _of_the_database(request: Request, error: Exception) -> Response:
    """A database that is away is no defect: the caller may try again."""
    if isinstance(error, DBAPIError) and not (error.connection_invalidated or _is_away(error)):
        raise error
    log.error("database.lost", path=request.url.path, error=type(error).__name__)
    return answer(NotReady("The database cannot be reached: try again later."))


_AWAY_SQLSTATES = ("08", "57P01", "57P02", "57P03", "53300", "3D000")
"""Connection lost, server stopping, starting or full, database gone (PostgreSQL, appendix A)."""
_AWAY_ON_SQLITE = ("SQLITE_BUSY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_IOERR")


def _is_away(error: DBAPIError) -> bool:
    state = str(getattr(error.orig, "sqlstate", ""))
    name = str(getattr(error.orig, "sqlite_errorname", ""))
    return state.startswith(_AWAY_SQLSTATES) or name.startswith(_AWAY_ON_SQLITE)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("request.failed", path=request.url.path, exc_info=error)
    return answer(DeployXError("Something failed on the server; its log has the details under this request's id."))
