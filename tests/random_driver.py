"""A driver whose connections are all known, and what callers do with SQLAlchemy's."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, cast

import aiosqlite
from sqlalchemy import exc, text

from poolwatch.requests import Account, Terms, current
from random_model import meets

if TYPE_CHECKING:
    from threading import Thread

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from random_model import Place

ROUTES = cycle((None, "/a", "/b"))
ERRORS = {
    "refuses": exc.DisconnectionError,
    "condemns all": exc.InvalidatePoolError,
    "fails": LookupError,
    "cancelled": asyncio.CancelledError,
}


@dataclass(eq=False)
class Caller:
    """Somebody who has a connection.

    Attributes:
        connection: SQLAlchemy's.
        place: Where it belongs; ``None`` once it was invalidated or detached.
        detached: It is the caller's own.
    """

    connection: AsyncConnection
    place: Place | None
    detached: bool = False


class Driver:
    """Opens aiosqlite connections, remembers them all, and can be told to refuse or to wait.

    Args:
        troubles: What lies in wait for whoever connects.
    """

    def __init__(self, troubles: list[str]) -> None:
        self.troubles = troubles
        self.handles: list[aiosqlite.Connection] = []
        self.threads: list[Thread] = []
        self.frozen = self.dialing = False

    async def connect(self, path: str, **options: Any) -> aiosqlite.Connection:
        """Open a connection to the database in *path*."""
        if self.frozen:
            self.dialing = True
            await asyncio.Event().wait()
        if meets(self.troubles, "refused"):
            message = "no database"
            raise sqlite3.OperationalError(message)
        handle = aiosqlite.connect(path, **options)
        # Before aiosqlite 0.22 a connection is a thread, since then it has one.
        thread = cast("Thread", getattr(handle, "_thread", handle))
        # A run that fails must not wait for what it left open.
        thread.daemon = True
        self.threads.append(thread)
        self.handles.append(await handle)
        return handle

    def open(self) -> int:
        """Count the connections that nobody has closed."""
        return sum(handle._running for handle in self.handles)

    async def close(self) -> None:
        """Close what is left, and let every thread end."""
        for handle in self.handles:
            if handle._running:
                await handle.close()
        for thread in self.threads:
            thread.join()


def begin_request() -> None:
    """Be in another request than before, or in none."""
    route = next(ROUTES)
    current.set(None if route is None else Account(object(), Terms(lambda _: ("GET", route), 1, details=True)))


async def connect(engine: AsyncEngine) -> AsyncConnection:
    """Check a connection out."""
    begin_request()
    return await engine.connect()


async def attempt(engine: AsyncEngine) -> AsyncConnection | None:
    """Check a connection out; return ``None`` if that fails."""
    begin_request()
    try:
        return await engine.connect()
    except (exc.SQLAlchemyError, LookupError, asyncio.CancelledError):
        return None


async def result(task: asyncio.Task[AsyncConnection]) -> AsyncConnection:
    """Return what *task* comes to."""
    return await task


async def use(connection: AsyncConnection, statement: str) -> None:
    """Run *statement*, whatever becomes of it; a COMMIT or ROLLBACK is SQLAlchemy's own."""
    if statement == "COMMIT":
        await connection.commit()
    elif statement == "ROLLBACK":
        await connection.rollback()
    else:
        try:
            await connection.execute(text(statement))
        except exc.DBAPIError as error:
            if not error.connection_invalidated:
                # The driver's thread keeps its last error, and with it whoever met it, until it has something else.
                await connection.execute(text("SELECT 1"))


async def use_again(connection: AsyncConnection) -> None:
    """Let a Connection that lost its connection get another."""
    begin_request()
    await connection.rollback()
    await use(connection, "SELECT 1")


def handle(connection: AsyncConnection) -> aiosqlite.Connection:
    """Return the driver's connection that *connection* has."""
    assert connection.sync_connection is not None
    return cast("aiosqlite.Connection", connection.sync_connection.connection.driver_connection)


async def invalidate_softly(connection: AsyncConnection) -> None:
    """Ask for a connection to be replaced at its next checkout."""
    (await connection.get_raw_connection()).invalidate(soft=True)


async def detach(connection: AsyncConnection) -> None:
    """Make a connection its caller's own."""
    (await connection.get_raw_connection()).detach()
