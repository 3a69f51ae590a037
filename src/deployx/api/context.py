"""What every route needs: the parts of the server, the caller, and a writing transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from deployx.catalog.blobs import BlobStore
from deployx.clock import Clock
from deployx.db.database import Database, Session
from deployx.events import Hints
from deployx.installation import Installation
from deployx.people import sessions
from deployx.people.policy import NOTHING_IN_PARTICULAR, Action, Thing, require
from deployx.people.principal import Principal
from deployx.settings import Settings
from deployx.work.executions import Server

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one server process, made at start."""

    settings: Settings
    clock: Clock
    database: Database
    installation: Installation
    hints: Hints

    @property
    def server(self) -> Server:
        return Server(self.installation.id, self.clock.steps)

    @property
    def blobs(self) -> BlobStore:
        return BlobStore(self.settings.storage)


class Caller:
    """One request's view of the server: who asks, and transactions that know the time."""

    def __init__(self, services: Services, who: Principal | None) -> None:
        self.services = services
        self.who = who

    @property
    def principal(self) -> Principal:
        """The signed-in user; the gate has refused everybody else before the body was read."""
        self.require(Action.OWN_ACCOUNT)
        assert self.who is not None
        return self.who

    def require(self, action: Action, thing: Thing = NOTHING_IN_PARTICULAR) -> None:
        require(self.who, action, thing)

    async def write(self, work: Callable[[Session, datetime], Awaitable[Result]]) -> Result:
        """Run `work(session, now)` in a transaction, again where it was a deadlock's victim."""
        database = self.services.database

        async def timed(session: Session) -> Result:
            return await work(session, await database.now(session))

        return await database.transact(timed)


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


async def caller(request: Request) -> Caller:
    """Who asks; that an API token is in use is written down at most once a minute."""
    made = Caller(services(request), request.scope.get("state", {}).get("principal"))
    if made.who is not None and made.who.use_is_due:
        token_id = made.who.token_id
        await made.write(lambda session, now: sessions.note_use(session, token_id, now=now))
    return made


ServicesOf = Annotated[Services, Depends(services)]
CallerOf = Annotated[Caller, Depends(caller)]
