"""An engine under test and its model: what the rules of a random run are made of."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import Counter
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis.stateful import RuleBasedStateMachine
from prometheus_client import CollectorRegistry
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from garbage import set_aside
from poolwatch import watch
from poolwatch.labels import CLOSED, FAILURES, REPLACED
from random_driver import ERRORS, Caller, Driver, connect, detach, handle, use
from random_model import Model, meets
from support import assert_books, moved, quiet, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import aiosqlite
    from sqlalchemy.ext.asyncio import AsyncConnection

    from poolwatch import Watch
    from random_model import Place

RECYCLE = 1800
# Seconds of inactivity; no connection here lives as long, not even those that are made to look old.
LIMIT = 1e6
# What a queue pool does not come to, or nothing does yet.
NEVER = {"guard_dead", "unpooled", "other"}
EXPECTED = {
    *product(("closes",), {*CLOSED} - NEVER),
    *product(("reconnects",), {*REPLACED} - NEVER),
    *product(("failures",), FAILURES),
    *product(("invalidations",), ("hard", "soft", "pool")),
}


class EngineMachine(RuleBasedStateMachine):
    """One engine, whoever uses it, and the model beside it.

    Attributes:
        database: The file that its connections open.
        seen: What was counted, by family and label, in all watches of all examples.
    """

    database: Path
    seen: ClassVar[Counter[tuple[str, str]]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.registry = CollectorRegistry()
        self.troubles: list[str] = []
        self.driver = Driver(self.troubles)
        self.callers: list[Caller] = []
        self.handles: dict[Place, aiosqlite.Connection] = {}
        self.records: weakref.WeakSet[Any] = weakref.WeakSet()
        self.started, self.go_on = threading.Event(), threading.Event()
        self.watched: Watch | None = None

    def set_up(self, *, size: int, overflow: int, pre_ping: bool, lifo: bool) -> None:
        """Make the engine and the model of it."""
        self.engine = create_async_engine(
            f"sqlite+aiosqlite:///{self.database}",
            poolclass=AsyncAdaptedQueuePool,
            pool_size=size,
            max_overflow=overflow,
            pool_pre_ping=pre_ping,
            pool_use_lifo=lifo,
            pool_recycle=RECYCLE,
            connect_args={"async_creator_fn": self.driver.connect},
        )
        dialect = self.engine.dialect
        self.model = Model(size, size + overflow, lifo=lifo, pre_ping=pre_ping, terminates=dialect.has_terminate)

    def listen(self) -> None:
        """Let the application find fault when it is told to."""
        root = self.engine.sync_engine
        event.listen(root, "connect", self._set_up)
        event.listen(root, "checkout", self._find_fault)
        event.listen(root, "reset", self._fail_to_reset)

    def _set_up(self, dbapi: Any, record: Any) -> None:
        self.records.add(record)
        dbapi.create_function("block", 0, self._block)
        if meets(self.troubles, "set-up fails"):
            raise LookupError

    def _find_fault(self, *_: Any) -> None:
        for trouble, error in ERRORS.items():
            if meets(self.troubles, trouble):
                raise error

    def _fail_to_reset(self, *_: Any) -> None:
        if meets(self.troubles, "reset fails"):
            raise LookupError

    def _block(self) -> None:
        self.started.set()
        self.go_on.wait()

    def compare(self) -> None:
        """Assert that everything that is counted is what the model counts."""
        assert self.watched is not None
        snapshot, model = self.watched.snapshot(), self.model
        figures: dict[str, tuple[object, object]] = {
            "connections": (model.connections(), snapshot.connections),
            "checkouts": (model.checkouts, snapshot.checkouts_total),
            "waits": (model.waits, snapshot.checkout_waits_total),
            "failures": (+model.failures, moved(snapshot.checkout_failures_total)),
            "connects": (model.adopted + model.established, snapshot.connects_total),
            "connect failures": (model.connect_failures, snapshot.connect_failures_total),
            "reconnects": (+model.reconnects, moved(snapshot.reconnects_total)),
            "closes": (+model.closes, moved(snapshot.closes_total)),
            "invalidations": (+model.invalidations, moved(snapshot.invalidations_total)),
            "leaks": (model.leaks, snapshot.leaks_total),
            "connect durations": (model.established, snapshot.connect_duration_seconds.count),
            "idle durations": (model.idles, snapshot.idle_duration_seconds.count),
            "lifetimes": (model.closes.total(), snapshot.connection_lifetime_seconds.count),
        }
        differences = {name: pair for name, pair in figures.items() if pair[0] != pair[1]}
        assert not differences, differences
        assert_books(snapshot)

    def end_watch(self) -> None:
        """Compare for the last time, and stop watching."""
        assert self.watched is not None
        self.compare()
        for family, counts in (
            ("closes", self.model.closes),
            ("reconnects", self.model.reconnects),
            ("failures", self.model.failures),
            ("invalidations", self.model.invalidations),
        ):
            for label, number in counts.items():
                self.seen[family, label] += number
        self.watched.close()
        self.watched = None
        self.model.silence(guarded=False)

    def begin_watch(self) -> None:
        """Watch, with a guard."""
        self.watched = watch(self.engine, guard=True, inactivity_limit=LIMIT, registry=self.registry)

    def strangers(self) -> bool:
        """Tell whether somebody holds a connection of a pool that was disposed of: a watch cannot adopt it."""
        return any(each.pool is not self.model.pool for each in self.model.open)

    def some(self, *, lost: bool = False) -> bool:
        """Tell whether somebody has a connection of a pool's, or (*lost*) an object that lost it."""
        return any((each.place is None) is lost and not each.detached for each in self.callers)

    def one(self, which: int, *, lost: bool = False) -> Caller:
        """Return one of those."""
        found = [each for each in self.callers if (each.place is None) is lost and not each.detached]
        return found[which % len(found)]

    def idle(self) -> list[Place]:
        """Return the present pool's places with a connection that nobody has and that is not lost."""
        return [place for place in self.model.pool.idle if place.born is not None and not place.dead]

    def silence(self) -> None:
        """Nobody uses the idle connections for a long time."""
        assert self.watched is not None
        active = {slot: slot.active for slot in self.watched._ledger.slots.values() if slot.held is not None}
        quiet(self.watched, LIMIT)
        for slot, moment in active.items():
            slot.active = moment
        self.model.silence(guarded=True)

    def queued(self) -> bool:
        """Tell whether somebody waits for a place."""
        pool: Any = self.engine.pool
        return any(not each.done() for each in pool._pool._queue._getters)

    async def wait(self) -> asyncio.Task[AsyncConnection]:
        """Begin to wait for a place."""
        waiting = asyncio.create_task(connect(self.engine))
        await until(self.queued, "a caller who waits")
        return waiting

    async def cancel_connect(self, when: Callable[[], bool]) -> None:
        """Cancel a caller *when* it has got so far."""
        task = asyncio.create_task(connect(self.engine))
        await until(when, "a caller to cancel")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def cancel_statement(self, connection: AsyncConnection) -> None:
        """Cancel a statement that is under way."""
        self.started.clear()
        self.go_on.clear()
        task = asyncio.create_task(use(connection, "SELECT block()"))
        await until(self.started.is_set, "a statement under way")
        task.cancel()
        # The driver's thread answers; nobody listens any more.
        self.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    # What a caller does that gets a connection, or parts with one

    def take(self, caller: Caller) -> None:
        """A caller begins to use the connection it got, which may be found lost."""
        self.callers.append(caller)
        assert caller.place is not None
        self.handles[caller.place] = handle(caller.connection)
        if caller.place.dead:
            self.runner.run(use(caller.connection, "SELECT 1"))
            self.find_lost(caller)

    def find_lost(self, caller: Caller) -> None:
        """A statement found the connection lost, which condemns all that the pool has now."""
        assert caller.place is not None
        self.model.condemn(self.model.pool, caller.place)
        self.model.invalidate(caller.place, "disconnect")
        caller.place = None

    def lose(self, which: int) -> None:
        """A connection is lost in its caller's hands."""
        caller = self.one(which)
        assert caller.place is not None
        self.runner.run(self.handles[caller.place].close())
        self.runner.run(use(caller.connection, "SELECT 1"))
        self.find_lost(caller)

    def cancel_a_statement(self, which: int) -> None:
        """A caller is cancelled in a statement."""
        caller = self.one(which)
        self.runner.run(self.cancel_statement(caller.connection))
        assert caller.place is not None
        self.model.invalidate(caller.place, "cancelled")
        caller.place = None

    def invalidate(self, which: int) -> None:
        """The application invalidates a connection."""
        caller = self.one(which)
        self.runner.run(caller.connection.invalidate())
        assert caller.place is not None
        self.model.invalidate(caller.place, "invalidated")
        caller.place = None

    def close(self, which: int) -> None:
        """A caller gives back what it has."""
        caller = self.callers.pop(which % len(self.callers))
        self.runner.run(caller.connection.close())
        if caller.place is not None:
            self.model.release(caller.place)
        self.model.beside -= caller.detached and self.model.terminates

    def close_in_vain(self, which: int) -> None:
        """A caller gives back what cannot be reset."""
        caller = self.one(which)
        self.callers.remove(caller)
        self.troubles.append("reset fails")
        self.runner.run(caller.connection.close())
        assert not self.troubles
        assert caller.place is not None
        self.model.invalidate(caller.place, "reset_failed")

    def detach(self, which: int) -> None:
        """A caller makes a connection its own."""
        caller = self.one(which)
        self.runner.run(detach(caller.connection))
        assert caller.place is not None
        self.model.detach(caller.place)
        caller.place, caller.detached = None, True

    def drop(self, which: int) -> None:
        """A caller forgets what it has, and the garbage collector finds it."""
        place = self.callers.pop(which % len(self.callers)).place
        gc.collect()
        if place is not None:
            self.model.leak(place)

    def teardown(self) -> None:
        """Read once more, and leave nothing open."""
        try:
            if self.watched is not None:
                self.end_watch()
        finally:
            self.callers.clear()
            gc.collect()
            self.runner.run(self.engine.dispose())
            self.runner.run(self.driver.close())
            self.runner.close()
            set_aside()
