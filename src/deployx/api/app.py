"""The HTTP application: all routes, the gate in front, errors as problems."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.types import ASGIApp

from deployx import __version__
from deployx.api import (
    activation_keys,
    agent_files,
    audit,
    auth,
    bulk,
    deployments,
    device_runs,
    devices,
    docs,
    enrolment,
    executions,
    explain,
    files,
    forecast,
    groups,
    health,
    occurrences,
    preview,
    problems,
    schedule,
    software,
    users,
    windows,
)
from deployx.api.context import Services
from deployx.api.fields import BIGGEST_ID
from deployx.api.gate import BY_TICKET, COOKIE, PUBLIC, Gate
from deployx.errors import Invalid, NotFound, Problem

ROUTERS = (
    health.router,
    auth.router,
    users.router,
    audit.router,
    groups.router,
    devices.router,
    activation_keys.router,
    enrolment.router,
    agent_files.router,
    bulk.router,
    schedule.router,
    occurrences.router,
    executions.router,
    explain.router,
    preview.router,
    forecast.router,
    windows.router,
    files.router,
    software.router,
    deployments.router,
    device_runs.router,
    docs.router,
)


def create_app(services: Services) -> FastAPI:
    """The routes alone; `gated` puts the gate in front, without which nobody is signed in."""
    app = _Application(
        title="DeployX",
        version=__version__,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(_check_address)],
        responses={"default": problems.DESCRIBED},
    )
    app.state.services = services
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router)
    return app


class _Application(FastAPI):
    """Adds to the description what the gate does: who needs to sign in, and how."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            described = super().openapi()
            described.setdefault("components", {})["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A session or API token."},
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            }
            described["security"] = [{"bearer": []}, {"cookie": []}]
            described["components"]["securitySchemes"]["ticket"] = {
                "type": "apiKey", "in": "header", "name": "Authorization", "description": "`Ticket …` of a work order.",
            }  # fmt: skip
            for path in described["paths"]:
                if path.startswith(BY_TICKET):
                    described["paths"][path]["get"]["security"] = [{"ticket": []}]
            for path in (PUBLIC - {"/metrics"}) & described["paths"].keys():
                for operation in described["paths"][path].values():
                    operation["security"] = []
        assert self.openapi_schema is not None
        return self.openapi_schema


def gated(app: FastAPI, services: Services, agents: ASGIApp) -> Gate:
    return Gate(app, services, agents)


def _check_address(request: Request) -> None:
    """Refuse ids that no object can have, and query parameters on a route that declares none.

    Routes that do declare some forbid what they do not know themselves.
    """
    for name, value in request.path_params.items():
        if name.endswith("_id") and not (value.isdecimal() and len(value) < 20 and 1 <= int(value) <= BIGGEST_ID):
            raise NotFound
    if request.query_params and not request.scope["route"].dependant.query_params:
        found = [Problem(("query", name), f"There is no parameter {name!r} here.") for name in request.query_params]
        raise Invalid(found)
