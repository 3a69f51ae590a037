"""`deployx server`: opens the database, starts the engine, serves the API, and stops in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import uvicorn
from sqlalchemy.exc import DBAPIError

from deployx import log
from deployx.api.app import create_app, gated
from deployx.api.context import Services
from deployx.api.gate import Gate
from deployx.catalog import sweeping
from deployx.clock import SystemClock
from deployx.db import migrate
from deployx.db.database import Database
from deployx.engine.supervisor import Engine
from deployx.errors import StartupRefused
from deployx.events import Hints
from deployx.gateway.endpoint import FRAME_BYTES_AFTER
from deployx.installation import ensure
from deployx.people import users
from deployx.settings import Settings

SWEEP_EVERY = 900.0
"""Seconds between two looks at the storage for what nobody wants any more."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A server's parts, open and running."""

    gate: Gate
    services: Services
    initial_password: str | None


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Opened]:
    """Open the database, migrate it, make what a first start makes, and run the engine meanwhile."""
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    clock, hints = SystemClock(), Hints()
    database = Database(settings.database, clock)
    await database.open()
    try:
        await _migrated(database, settings)
        async with database.write() as session:
            now = await database.now(session)
            installation = await ensure(session, settings.signing_key, now=now)
            password = await users.ensure_first_administrator(
                session, settings.admin_password, settings.data_dir, now=now
            )
        services = Services(settings, clock, database, installation, hints)
        await asyncio.to_thread(services.blobs.prepare)
        sweep = partial(sweeping.sweep, database, services.blobs)
        engine = Engine(
            database,
            clock,
            hints,
            installation.id,
            installation.epoch,
            installation.signing_key,
            settings.returning_per_minute,
            [(sweep, SWEEP_EVERY)],
        )
        await engine.start()
        try:
            yield Opened(gated(create_app(services), services, engine.endpoint), services, password)
        finally:
            await engine.stop()
    finally:
        await database.close()


async def _migrated(database: Database, settings: Settings) -> None:
    try:
        await migrate.upgrade(database)
    except (DBAPIError, OSError) as error:
        cause = str(getattr(error, "orig", error)).partition("\n")[0]
        raise StartupRefused(f"The database cannot be used: {cause} (DATABASE_URL or --data-dir).") from None


def listen(settings: Settings) -> socket.socket:
    """The listening socket; a taken port is said and named. Raises StartupRefused."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        why = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise StartupRefused(f"Port {settings.port} on {settings.host} {why}: choose another with --port.") from None
    listener.listen(2048)
    return listener


def web_server(app: Gate, settings: Settings) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            ws="websockets-sansio",
            ws_max_size=FRAME_BYTES_AFTER,
            ws_ping_interval=None,
            ws_per_message_deflate=False,
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=5,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
        )
    )


async def serve(settings: Settings, listener: socket.socket) -> None:
    """Run until SIGTERM or SIGINT."""
    async with opened(settings) as server:
        if server.initial_password is not None:
            place = settings.data_dir / users.INITIAL_PASSWORD_FILE
            print(f"First start: user admin, password {server.initial_password} (also in {place})", flush=True)  # noqa: T201
        web = web_server(server.gate, settings)
        host, port = listener.getsockname()[:2]
        scheme = "https" if settings.tls_cert else "http"
        shown = f"[{host}]" if ":" in host else host
        print(f"DeployX listens on {scheme}://{shown}:{port}", flush=True)  # noqa: T201
        # What is loaded by now lives as long as the process: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        await web.serve(sockets=[listener])


def run(settings: Settings) -> int:
    log.configure(settings.log_format, settings.log_level)
    listener = listen(settings)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(settings, listener))
    return 0
