"""Watched engines of every driver, used alike, and what a server says of their sessions.

A pytest plugin: modules that need its fixtures name it. It brings its servers along.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

from poolwatch import watch
from poolwatch.drivers import driver_of
from support import assert_books, moved, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from prometheus_client import CollectorRegistry
    from sqlalchemy import Connection, Engine

    from poolwatch import PoolSnapshot, Watch
    from poolwatch.drivers import Driver
    from poolwatch.slot import Slot
    from variants import TlsServer, Variant

pytest_plugins = ["tls"]


class Client:
    """An engine of one variant, watched unless told not to. What is called with :meth:`call` uses all of them alike.

    Args:
        variant: Which.
        server: Where to.
        port: By which way; the server's own if ``None``.
        connect_args: What the driver is told, besides what the variant needs.
        watching: What ``watch()`` is told; ``None`` for not to watch.
        options: The engine's.

    Attributes:
        engine: The engine; of an async one the part that is sync.
    """

    def __init__(
        self,
        variant: Variant,
        server: TlsServer,
        *,
        port: int | None = None,
        connect_args: Mapping[str, Any] | None = None,
        watching: Mapping[str, Any] | None,
        **options: Any,
    ) -> None:
        self._variant = variant
        self._autocommit = options.get("isolation_level") == "AUTOCOMMIT"
        self._server = server
        make: Callable[..., AsyncEngine | Engine] = create_engine if variant.sync else create_async_engine
        url = make_url(server.url(variant.driver.name))
        args = server.certificate.connect_args(variant.driver.name, tls=variant.tls) | dict(connect_args or {})
        self._own = make(url.set(port=port or url.port), connect_args=args, **options)
        self.engine = self._own.sync_engine if isinstance(self._own, AsyncEngine) else self._own
        self._watched: Watch | None = None
        if watching is not None:
            self.watch(**watching)

    def watch(self, **watching: Any) -> None:
        """Begin to watch."""
        self._watched = watch(self._own, per_connection=True, **watching)

    @property
    def watched(self) -> Any:
        """The watch, privates included."""
        assert self._watched is not None
        return self._watched

    def snapshot(self) -> PoolSnapshot:
        """Read the pool."""
        found: PoolSnapshot = self.watched.snapshot()
        assert found.internal_errors_total == 0
        return found

    @property
    def slot(self) -> Slot:
        """What is known of the only connection."""
        (slot,) = self.watched._ledger.slots.values()
        return slot  # type: ignore[no-any-return]

    @property
    def adapter(self) -> Driver:
        """What is known of the driver."""
        return driver_of(self.engine.dialect)

    @property
    def question(self) -> Any:
        """What asks for limits."""
        return self.watched._listeners.question

    @property
    def limits(self) -> Mapping[str, float]:
        """What is exported of limits."""
        return self.snapshot().inactivity_limit_seconds

    async def call(self, work: Callable[..., Any], *args: Any) -> Any:
        """Call *work*, within which an async driver waits as a sync one does; the event loop goes on meanwhile."""
        return await (asyncio.to_thread if self._variant.sync else greenlet_spawn)(work, *args)

    async def connect(self) -> Connection:
        """Check a connection out."""
        connection: Connection = await self.call(self.engine.connect)
        return connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Check a connection out, and give it back."""
        connection = await self.connect()
        try:
            yield connection
        finally:
            await self.call(connection.close)

    async def run(self, connection: Connection, statement: str) -> Any:
        """Run *statement*; return the first column of its first row if it has any."""

        def work() -> Any:
            result = connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None

        return await self.call(work)

    async def use(self, statement: str = "SELECT 1") -> Any:
        """Check a connection out, run *statement*, give the connection back."""
        async with self.connection() as connection:
            return await self.run(connection, statement)

    async def id_of(self, connection: Connection) -> Any:
        """Return the id of *connection* on the server."""
        return await self.run(connection, self._server.own_id)

    async def dropped(self, number: int) -> tuple[float, float]:
        """Wait until the server has closed connection *number*; return when it was there last, and when no more."""
        moments = [time.time()]

        def is_gone() -> bool:
            moments.append(time.time())
            return number not in self._server.connections()

        await until(is_gone, "a connection that the server drops")
        return moments[-2], time.time()

    async def check(self) -> PoolSnapshot:
        """Assert every identity, the one about the server included."""
        snapshot = self.snapshot()
        assert_books(snapshot)
        alive = sum(snapshot.connections.values()) - snapshot.connections["dead"]
        # The server takes a moment to notice that a socket was closed.
        await until(lambda: len(self._server.connections()) == alive, f"{alive} connections on the server")
        return snapshot

    async def check_unknown(self) -> None:
        """Assert that checkouts work, in no transaction and in step, on one connection, of which no limit is known."""
        async with self.connection() as connection:
            dbapi: Any = connection.connection.dbapi_connection
            if not self._variant.driver.mysql:
                assert self._autocommit == dbapi.autocommit
            assert not self.adapter.in_transaction(connection.connection.driver_connection)
            assert 1 == await self.run(connection, "SELECT 1")
            assert 2 == await self.run(connection, "SELECT 2")
        assert 3 == await self.use("SELECT 3")
        snapshot = await self.check()
        assert ({}, None) == (snapshot.inactivity_limit_seconds, snapshot.server_max_connections)
        assert {("idle", "unknown"): 1} == moved(snapshot.timeout_risk_connections)

    async def close(self) -> None:
        """Dispose of the engine and end the watch."""
        await self.call(self.engine.dispose)
        if self._watched is not None:
            self._watched.close()


@pytest.fixture
async def make_client(
    variant: Variant, server: TlsServer, registry: CollectorRegistry
) -> AsyncIterator[Callable[..., Client]]:
    """Return a function that makes clients of the test's variant; they are closed afterwards.

    Its argument *watching* holds what ``watch()`` is told, ``None`` for not to watch.
    """
    clients: list[Client] = []

    def make(*, watching: Mapping[str, Any] | None = {}, **options: Any) -> Client:
        told = None if watching is None else {"registry": registry, **watching}
        clients.append(Client(variant, server, watching=told, **options))
        return clients[-1]

    yield make
    for each in clients:
        await each.close()
