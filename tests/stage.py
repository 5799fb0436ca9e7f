"""The stage on which situations are provoked: watched engines on a real database, and the truth about them."""

from __future__ import annotations

import asyncio
import gc
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

import databases
from poolwatch import watch
from support import Tally, age, assert_books, fill, moved, run, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from databases import Database, Driver
    from poolwatch import PoolSnapshot, Watch

# Where SQLAlchemy behaved differently before it was mended.
OLDEST = sqlalchemy.__version__ == "2.0.31"
BEFORE_2_1 = sqlalchemy.__version__.startswith("2.0.")


class Stage:
    """Watched engines of one driver on one server.

    Attributes:
        watches: One for each engine.
        is_frozen: The server answers nothing now.
    """

    def __init__(self, server: Database, driver: Driver, registry: CollectorRegistry) -> None:
        self.server = server
        self.driver = driver
        self.watches: list[Watch] = []
        self._registry = registry
        self._freeze = ExitStack()
        self.is_frozen = False
        self._engines: list[AsyncEngine] = []
        self._tallies: list[Tally] = []

    def engine(
        self, before: Callable[[AsyncEngine], None] | None = None, *, port: int | None = None, **options: Any
    ) -> AsyncEngine:
        """Make an engine and watch it; *before* is called in between, *port* leads to the server by another way."""
        url = make_url(self.server.url(self.driver.name))
        engine = create_async_engine(url.set(port=port or url.port), **options)
        self._engines.append(engine)
        self._tallies.append(Tally(engine.sync_engine.pool))
        if before is not None:
            before(engine)
        self.watches.append(watch(engine, name=f"pool{len(self.watches)}", registry=self._registry))
        return engine

    def guarded(self, limit: float | None = None, **options: Any) -> tuple[AsyncEngine, Watch]:
        """Make an engine with a guard, which knows of a *limit* on the way to the server; return it and its watch."""
        engine = self.engine(**options)
        watched = self.watches[-1]
        watched.adjust({"guard": True} | ({} if limit is None else {"inactivity_limit": limit}))
        return engine, watched

    def drop_engines(self) -> None:
        """Keep no engine alive."""
        self._engines.clear()

    def age(self, seconds: float = 61) -> None:
        """Make every open connection older by SQLAlchemy's own clock."""
        for each in self.watches:
            age(each, seconds)

    async def check(
        self,
        closes: dict[str, int] | None = None,
        reconnects: dict[str, int] | None = None,
        *,
        idle: int = 0,
        out: int = 0,
        lost: int = 0,
        beside: int = 0,
        dropped: int = 0,
        leaks: int = 0,
        failures: dict[str, int] | None = None,
    ) -> None:
        """Assert every identity, exact totals over all engines, and that driver and server agree.

        Args:
            closes: Why connections were closed.
            reconnects: What others were established in place of.
            idle: How many are idle, condemned or dead.
            out: How many are checked out.
            lost: How many of them the server has closed.
            beside: How many are open and no longer the pool's: detached, or lying in an abandoned pool.
            dropped: How many were left to the garbage collector without a close.
            leaks: How many were never given back.
            failures: How checkouts failed.
        """
        connections = idle + out + beside
        await self.settle(connections, lost)
        snapshots = [each.snapshot() for each in self.watches]
        for each in snapshots:
            assert_books(each)
        assert (closes or {}) == _total(snapshots, "closes_total")
        assert (reconnects or {}) == _total(snapshots, "reconnects_total")
        assert (failures or {}) == _total(snapshots, "checkout_failures_total")
        assert sum(each.got for each in self._tallies) == sum(each.checkouts_total for each in snapshots)
        unheard = sum(
            value for (_, phase), value in _total(snapshots, "disconnects_total").items() if phase == "ping_failed"
        )
        assert sum(each.failed for each in self._tallies) == sum((failures or {}).values()) + unheard
        assert leaks == sum(each.leaks_total for each in snapshots)
        held = sum(each.connections["checked_out"] for each in snapshots)
        assert (idle, out) == (sum(sum(each.connections.values()) for each in snapshots) - held, held)
        alive = connections - lost + (dropped if self.driver.strands else 0)
        # The server takes a moment to notice that a socket was closed.
        await until(lambda: len(self.server.connections()) == alive, f"{alive} connections on the server")

    async def settle(self, connections: int, lost: int = 0) -> None:
        """Wait until the driver has so many *connections* open, less any of those that are *lost*.

        What an interrupted caller leaves behind ends in tasks of SQLAlchemy's and the driver's own (asyncpg tells the
        server on a connection beside), and with their garbage.
        """

        def is_settled() -> bool:
            gc.collect()
            return connections - lost <= databases.open_handles() <= connections

        await until(is_settled, f"{connections} connections open in the driver, {lost} of them lost")

    async def fill(self, engine: AsyncEngine, connections: int) -> list[int]:
        """Leave *connections* idle in the pool; return their ids on the server."""
        return await fill(engine, connections, self.server.own_id)

    async def id_of(self, connection: AsyncConnection) -> int:
        """Return the id of *connection* on the server."""
        number = await run(connection, self.server.own_id)
        assert isinstance(number, int)
        return number

    async def lose(self, *connection_ids: int) -> None:
        """Kill connections, and let the event loop see that they are gone."""
        for each in connection_ids:
            self.server.kill(each)
        await self.hear()

    async def hear(self) -> None:
        """Let the event loop read what servers have sent."""
        for _ in range(10):
            await asyncio.sleep(0.001)

    @contextmanager
    def short_sessions(self) -> Iterator[None]:
        """Let the server drop connections that are opened meanwhile after a second of silence."""
        self.server.drop_inactive(1)
        try:
            yield
        finally:
            self.server.drop_inactive(None)

    async def silence(self) -> None:
        """Wait until the server has dropped every connection."""
        await until(lambda: not self.server.connections(), "the server dropping silent connections")
        await self.hear()

    async def restart(self) -> None:
        """Stop the server and start it again."""
        with self.outage():
            pass
        await self.hear()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Stop the server meanwhile."""
        self.server.stop()
        try:
            yield
        finally:
            self.server.start()

    async def sleeping(self) -> None:
        """Wait until a statement is under way on the server."""
        await until(lambda: bool(self.server.sleepers()), "a statement under way")

    def nap(self, seconds: float) -> str:
        """Return a statement that takes so long."""
        return self.server.sleep.replace("60", str(seconds))

    async def wake(self) -> None:
        """End what the server still runs for callers who are gone."""
        for each in self.server.sleepers():
            self.server.kill(each)

    def freeze(self) -> None:
        """Let the server answer nothing until it thaws."""
        self._freeze.enter_context(databases.frozen(self.server))
        self.is_frozen = True

    def thaw(self) -> None:
        """Let it answer again."""
        self._freeze.close()
        self.is_frozen = False

    async def freezing(self) -> None:
        """Wait until the server is frozen by the code under test; its task has then run to its next await."""
        await until(lambda: self.is_frozen, "the freeze")

    async def pending(self) -> None:
        """Wait until a caller is inside ``pool.connect()`` and has come as far as it can without the server."""
        (watched,) = self.watches
        await until(lambda: watched.snapshot().pending_checkouts == 1, "a caller who waits")
        await self.hear()

    async def close(self) -> None:
        """Dispose of the engines and end the watches."""
        self.thaw()
        for engine in self._engines:
            await engine.dispose()
        for watched in self.watches:
            watched.close()
        self._engines.clear()
        gc.collect()
        await self.hear()
        # What nobody will ever use again, by now.
        for each in self.server.connections():
            self.server.kill(each)


class Interruptible:
    """A task that is ended from outside, in one of two ways.

    Args:
        way: ``cancel`` the task, or let an ``asyncio.timeout`` around its work ``expire``.
        work: What it does.

    Attributes:
        error: The name of what is raised by a task that gives up.
    """

    def __init__(self, way: str, work: Coroutine[Any, Any, Any]) -> None:
        self._way = way
        self.error = {"cancel": "CancelledError", "expire": "TimeoutError"}[way]
        self._timeout = asyncio.timeout(None)
        self._started = asyncio.Event()
        self._tasks = [asyncio.create_task(self._run(work))]

    async def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        async with self._timeout:
            self._started.set()
            await work

    async def interrupt(self) -> None:
        """Interrupt it, and let the event loop deliver that."""
        await self._started.wait()
        if self._way == "cancel":
            self._tasks[0].cancel()
        else:
            self._timeout.reschedule(asyncio.get_running_loop().time())
        (task,) = self._tasks
        await until(lambda: bool(task.cancelling() or task.done()), "the interruption")
        await asyncio.sleep(0)

    async def ended(self) -> str:
        """Wait for its end; return the name of what was raised, or an empty string."""
        # Popped, because a task keeps its exception.
        error = await ending(self._tasks.pop())
        return type(error).__name__ if error else ""


async def ending(waiting: Awaitable[Any]) -> BaseException | None:
    """Return what *waiting* ends with, ``None`` if it ends well; without any frames, which hold connections."""
    try:
        await waiting
    except BaseException as error:  # noqa: BLE001
        ended, behind = error, cast("BaseException | None", error)
        while behind is not None:
            behind.__traceback__ = None
            behind = behind.__cause__ or behind.__context__
        return ended
    return None


def _total(snapshots: list[PoolSnapshot], field: str) -> dict[Any, int]:
    total: dict[Any, int] = {}
    for snapshot in snapshots:
        for key, value in moved(getattr(snapshot, field)).items():
            total[key] = total.get(key, 0) + value
    return total
