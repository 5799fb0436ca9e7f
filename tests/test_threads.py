"""The books of sync engines that many threads use, read, age and lose connections of at once."""

from __future__ import annotations

import gc
import logging
import random
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import pymysql  # type: ignore[import-untyped]
import pytest
from sqlalchemy import create_engine, exc
from sqlalchemy.pool import NullPool, SingletonThreadPool

from handles import assert_held, assert_true
from poolwatch import watch
from support import Reader, moved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry
    from sqlalchemy import Engine, PoolProxiedConnection
    from sqlalchemy.pool import Pool

    from poolwatch import Watch
    from poolwatch.demo.servers import MariaDB

THREADS = 12
ROUNDS = 50
TOO_OLD = 600
# PyMySQL would make a TLS context for each connection, which takes longer than everything else here.
LOST = (exc.DBAPIError, exc.InvalidRequestError, exc.ResourceClosedError, pymysql.err.Error)
PLAIN = {"ssl_disabled": True}


class Crowd:
    """Threads at work, and others that repeat theirs until those have ended; leaving raises their first error."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        self._workers: list[threading.Thread] = []
        self._others: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._workers:
            thread.join()
        self._over.set()
        for thread in self._others:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def work(self, work: Callable[[], None]) -> None:
        """Do *work* once, in a thread of its own."""
        self._workers.append(self._start(work))

    def repeat(self, work: Callable[[], None], pause: float) -> None:
        """Do *work* until the workers have ended, with a *pause* before each time."""

        def again() -> None:
            while not self._over.wait(pause):
                work()

        self._others.append(self._start(again))

    def _start(self, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001
                self._errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread


class Visitor:
    """One thread's seeded way through everything that a caller may do with a connection."""

    def __init__(self, engine: Engine, seed: int, *, leaks: bool = True) -> None:
        self._may_leak = leaks
        self._engine = engine
        self._random = random.Random(seed)  # noqa: S311
        self.timeouts = self.leaks = self.detachings = 0
        self._detached: list[PoolProxiedConnection] = []

    def __call__(self) -> None:
        """Use connections until all rounds are done."""
        ways = [self._query, self._query, self._linger, self._invalidate, self._condemn, self._detach]
        ways += [self._leak] * self._may_leak
        for _ in range(ROUNDS):
            try:
                self._random.choice(ways)()
            except exc.TimeoutError:
                self.timeouts += 1
            except LOST:
                pass

    def close(self) -> None:
        """Close what was detached, and let go of it."""
        while self._detached:
            self._detached.pop().close()

    def _query(self) -> None:
        with self._engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
            connection.commit()

    def _linger(self) -> None:
        with self._engine.connect() as connection:
            connection.exec_driver_sql(f"SELECT SLEEP({self._random.choice((0.002, 0.02))})")

    def _invalidate(self) -> None:
        with self._engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
            connection.invalidate()

    def _condemn(self) -> None:
        with self._engine.connect() as connection:
            connection.connection.invalidate(soft=True)

    def _detach(self) -> None:
        connection = self._engine.raw_connection()
        connection.detach()
        self.detachings += 1
        if len(self._detached) < 2:
            self._detached.append(connection)
        else:
            connection.close()

    def _leak(self) -> None:
        cycle: list[Any] = [self._engine.raw_connection()]
        self.leaks += 1
        # So that whichever thread collects garbage next finds it.
        cycle.append(cycle)


@pytest.fixture(autouse=True)
def quick_turns(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Let threads interrupt each other often; look for garbage only among what the test makes."""
    # Records of the pool's complaints would keep connections alive in their tracebacks.
    caplog.set_level(logging.CRITICAL + 1, "sqlalchemy.pool")
    interval = sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(interval)
    gc.unfreeze()


def collect_garbage() -> None:
    """Collect garbage in whichever thread this is."""
    gc.collect()


class Nature:
    """What happens to connections that nobody who uses them has asked for."""

    def __init__(self, server: MariaDB, watched: Watch) -> None:
        self._admin = pymysql.connect(host="127.0.0.1", port=server.port, user="app", password="app", **PLAIN)  # noqa: S106
        self._watched = watched
        self._random = random.Random(THREADS)  # noqa: S311

    def _records(self) -> list[Any]:
        return [slot.record() for slot in list(self._watched._ledger.slots.values())]

    def kill(self) -> None:
        """Kill one of the pool's connections, if there is one; it may be closed already, or be about to."""
        with suppress(AttributeError, IndexError, pymysql.err.OperationalError):
            self._admin.kill(self._random.choice(self._records()).dbapi_connection.thread_id())

    def close(self) -> None:
        """Close the connection that kills others."""
        self._admin.close()

    def age(self) -> None:
        """Make about half of them too old."""
        for record in self._records():
            if record is not None and self._random.random() < 0.5:
                record.starttime -= TOO_OLD


@pytest.mark.parametrize("pre_ping", [True, False])
def test_queue(mariadb: MariaDB, registry: CollectorRegistry, *, pre_ping: bool) -> None:
    """Threads that queue, invalidate, detach and leak among kills, ageing and dispose() leave true books."""
    engine = create_engine(
        mariadb.url("pymysql"),
        connect_args=PLAIN,
        pool_size=3,
        max_overflow=2,
        pool_timeout=0.03,
        pool_recycle=TOO_OLD - 1,
        pool_pre_ping=pre_ping,
    )
    watched = watch(engine, registry=registry)
    visitors = [Visitor(engine, seed) for seed in range(THREADS)]
    nature = Nature(mariadb, watched)
    with Crowd() as crowd:
        for visitor in visitors:
            crowd.work(visitor)
        for _ in range(2):
            crowd.repeat(Reader(watched), 0.002)
        crowd.repeat(nature.kill, 0.01)
        crowd.repeat(nature.age, 0.05)
        crowd.repeat(engine.dispose, 0.2)
        crowd.repeat(collect_garbage, 0.02)
    nature.close()
    for visitor in visitors:
        visitor.close()
    # Twice: what the first gives back to a pool that dispose() has left behind goes with the second.
    gc.collect()
    gc.collect()
    snapshot = assert_held(watched)
    failures, closes = snapshot.checkout_failures_total, moved(snapshot.closes_total)
    assert failures is not None
    assert 0 == snapshot.connections["checked_out"]
    assert sum(visitor.timeouts for visitor in visitors) == failures["timeout"]
    assert sum(visitor.leaks for visitor in visitors) == snapshot.leaks_total
    assert sum(visitor.detachings for visitor in visitors) == snapshot.closes_total["detached"]
    assert {"recycle", "soft_invalidated", "invalidated", "overflow", "disposed", "detached"} <= closes.keys()
    assert 0 == snapshot.closes_total["other"]
    # A connection that was killed is met by a statement, by a return, or by the ping.
    assert {"disconnect", "reset_failed", *(["pre_ping"] if pre_ping else [])} & closes.keys()
    engine.dispose()
    assert_true(mariadb, watched)


@pytest.mark.parametrize(
    ("poolclass", "options"),
    [
        (NullPool, {}),
        (SingletonThreadPool, {"pool_size": THREADS}),
    ],
    ids=["NullPool", "SingletonThreadPool"],
)
def test_pools_without_a_queue(
    mariadb: MariaDB,
    registry: CollectorRegistry,
    poolclass: type[Pool],
    options: dict[str, int],
) -> None:
    """A pool that gives a connection to each caller, or to each thread, keeps true books too."""
    engine = create_engine(mariadb.url("pymysql"), connect_args=PLAIN, poolclass=poolclass, **options)
    watched = watch(engine, registry=registry)
    # A thread that leaks a SingletonThreadPool's connection is given it again.
    visitors = [Visitor(engine, seed, leaks=poolclass is NullPool) for seed in range(THREADS)]
    with Crowd() as crowd:
        for visitor in visitors:
            crowd.work(visitor)
        crowd.repeat(Reader(watched), 0.002)
        crowd.repeat(collect_garbage, 0.02)
    for visitor in visitors:
        visitor.close()
    gc.collect()
    snapshot = assert_true(mariadb, watched)
    assert sum(visitor.leaks for visitor in visitors) == snapshot.leaks_total
    assert sum(visitor.detachings for visitor in visitors) == snapshot.closes_total["detached"]
    engine.dispose()
    assert_true(mariadb, watched)
