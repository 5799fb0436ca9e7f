"""Pools of other classes than the default one, and sync engines."""

from __future__ import annotations

import gc
import sqlite3
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import generate_latest
from sqlalchemy import create_engine, event, exc
from sqlalchemy.pool import QueuePool, StaticPool

from handles import wait_for
from poolwatch import watch
from support import Stubborn, age, assert_books, moved

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import CollectorRegistry
    from sqlalchemy import Connection

    from poolwatch.demo.servers import MariaDB


def test_class_that_cannot_be_replaced(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """A pool that forbids it is watched without the families that need it, and one warning says so."""
    engine = create_engine("sqlite://", poolclass=Stubborn)
    watched = watch(engine, registry=registry)
    with engine.connect():
        assert 1 == watched.snapshot().connections["checked_out"]
    snapshot = watched.snapshot()
    assert None is snapshot.checkout_duration_seconds
    assert None is snapshot.pending_checkouts
    assert (1, 1) == (snapshot.checkouts_total, snapshot.hold_duration_seconds.count)
    assert b"pending_checkouts{" not in generate_latest(registry)
    (warning,) = caplog.records
    assert "Stubborn" in warning.getMessage()


def test_sync_engine(registry: CollectorRegistry, mariadb: MariaDB) -> None:
    """A sync engine is watched the same way, and its leak is one without a close."""
    engine = create_engine(mariadb.url("pymysql"))
    watched = watch(engine, registry=registry)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    assert 28800.0 == watched.snapshot().inactivity_limit_seconds["wait_timeout"]
    leaked = engine.connect()
    del leaked
    gc.collect()
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert (1, 2, {}) == (snapshot.leaks_total, snapshot.checkouts_total, moved(snapshot.closes_total))
    engine.dispose()
    assert {"disposed": 1} == moved(watched.snapshot().closes_total)


def test_static_pool(registry: CollectorRegistry) -> None:
    """A pool of one connection has the size 1 and no queue."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    watched = watch(engine, registry=registry)
    with engine.connect():
        pass
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert (1, 1, float("inf")) == (snapshot.size, snapshot.connections_limit, snapshot.checkout_timeout_seconds)


@pytest.mark.parametrize(
    ("soft", "reason", "out"),
    [(False, "invalidated", 1), (True, "soft_invalidated", 2)],
    ids=["hard", "soft"],
)
def test_static_pool_invalidated_while_it_is_shared(
    registry: CollectorRegistry, *, soft: bool, reason: str, out: int
) -> None:
    """What a StaticPool opens next takes the place of what was invalidated, though somebody still holds that."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    watched = watch(engine, registry=registry)
    first = engine.connect()
    first.connection.invalidate(soft=soft)
    second = engine.connect()
    snapshot = watched.snapshot()
    assert (2, out) == (snapshot.connects_total, snapshot.connections["checked_out"])
    first.close()
    second.close()
    del first, second
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert {reason: 1} == moved(snapshot.closes_total) == moved(snapshot.reconnects_total)
    with engine.connect() as third:
        third.connection.invalidate(soft=soft)
    engine.dispose()
    engine.connect().close()
    # The next pool replaces nothing.
    assert {reason: 1} == moved(watched.snapshot().reconnects_total)


def test_one_connection_a_thread(registry: CollectorRegistry) -> None:
    """A pool that hands a thread the connection it already has makes one checkout of two calls."""
    engine = create_engine("sqlite://")
    watched = watch(engine, registry=registry)
    first, second = engine.raw_connection(), engine.raw_connection()
    assert first is second
    assert (1, 1) == (watched.snapshot().checkouts_total, watched.snapshot().connections["checked_out"])
    first.close()
    second.close()
    assert_books(watched.snapshot())


def test_creator(registry: CollectorRegistry) -> None:
    """With a creator no attempt is timed, and a reconnect that fails closes for the reason it was tried for."""
    answers = iter([True, False, True])

    def create() -> sqlite3.Connection:
        if not next(answers):
            message = "no database"
            raise sqlite3.OperationalError(message)
        return sqlite3.connect(":memory:", check_same_thread=False)

    engine = create_engine("sqlite://", creator=create, poolclass=QueuePool, pool_recycle=60)
    watched = watch(engine, registry=registry)
    engine.raw_connection().close()
    age(watched, 61)
    with pytest.raises(sqlite3.OperationalError):
        engine.raw_connection()
    engine.raw_connection().close()
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert {"recycle": 1} == moved(snapshot.closes_total) == moved(snapshot.reconnects_total)
    assert (0, {"other": 1}) == (snapshot.connect_duration_seconds.count, moved(snapshot.checkout_failures_total))


@pytest.mark.parametrize("before", [True, False])
def test_the_applications_own_way_to_connect(registry: CollectorRegistry, *, before: bool) -> None:
    """A do_connect listener that makes the connection itself hides the attempt if it was there first, and only that."""
    engine = create_engine("sqlite://", poolclass=QueuePool)

    def connect(*_: Any) -> sqlite3.Connection:
        return sqlite3.connect(":memory:", check_same_thread=False)

    if before:
        event.listen(engine, "do_connect", connect)
    watched = watch(engine, registry=registry)
    if not before:
        event.listen(engine, "do_connect", connect)
    engine.raw_connection().close()
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert (1, 0 if before else 1) == (snapshot.connects_total, snapshot.connect_duration_seconds.count)


@pytest.mark.parametrize("record", [None, object()])
def test_creator_called_by_hand(registry: CollectorRegistry, record: object) -> None:
    """Whoever calls the pool's creator without a record of the pool's gets a connection that is none of ours."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    watched = watch(engine, registry=registry)
    create: Any = engine.pool._creator
    create(record).close()
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert 0 == snapshot.connects_total


def test_leak_that_was_there_before(registry: CollectorRegistry) -> None:
    """A connection that was out before we watched, and is dropped after, is a leak."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    connection = engine.raw_connection()
    watched = watch(engine, registry=registry)
    del connection
    gc.collect()
    assert_books(watched.snapshot())
    assert 1 == watched.snapshot().leaks_total


def test_failed_commit(registry: CollectorRegistry) -> None:
    """After a COMMIT that failed SQLAlchemy sends nothing on return, so that is no activity."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    watched = watch(engine, registry=registry)
    connection = engine.connect()
    connection.exec_driver_sql("PRAGMA foreign_keys = ON")
    connection.exec_driver_sql("CREATE TABLE a (b INT PRIMARY KEY)")
    connection.exec_driver_sql("CREATE TABLE c (b INT REFERENCES a DEFERRABLE INITIALLY DEFERRED)")
    connection.exec_driver_sql("INSERT INTO c VALUES (1)")
    with pytest.raises(exc.IntegrityError):
        connection.commit()
    (slot,) = watched._ledger.slots.values()
    before = slot.active
    connection.close()
    assert before == slot.active


def test_failed_statement(mariadb: MariaDB, registry: CollectorRegistry) -> None:
    """After a statement that failed the ROLLBACK on return is activity."""
    engine = create_engine(mariadb.url("pymysql"), connect_args={"ssl_disabled": True})
    watched = watch(engine, registry=registry)
    connection = engine.connect()
    with pytest.raises(exc.ProgrammingError):
        connection.exec_driver_sql("NO SUCH STATEMENT")
    (slot,) = watched._ledger.slots.values()
    before = slot.active
    connection.close()
    assert before is not None
    assert slot.active is not None
    assert before < slot.active
    engine.dispose()


@pytest.mark.parametrize("before", [True, False])
def test_set_up_that_fails(registry: CollectorRegistry, *, before: bool) -> None:
    """A connection that the application's connect listener refuses is closed as failed, though no event says so."""
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_recycle=60)
    answers = iter([True, False, False, True])

    def refuse(_dbapi: Any, _record: Any) -> None:
        if not next(answers):
            raise exc.InvalidRequestError

    if before:
        event.listen(engine, "connect", refuse)
    watched = watch(engine, registry=registry)
    if not before:
        event.listen(engine, "connect", refuse)
    engine.raw_connection().close()
    age(watched, 61)
    for _ in range(2):
        with pytest.raises(exc.InvalidRequestError):
            engine.raw_connection()
    engine.raw_connection().close()
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert (4, {"other": 2}) == (snapshot.connects_total, moved(snapshot.checkout_failures_total))
    assert {"recycle": 1, "failed": 2} == moved(snapshot.closes_total)
    assert {"recycle": 1} == moved(snapshot.reconnects_total)


def test_recycled_while_another_comes_back(registry: CollectorRegistry) -> None:
    """A pool that another thread's return has just filled does not make an overflow of what a checkout replaces."""
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=1, pool_recycle=60)
    held: list[Connection] = []

    @event.listens_for(engine, "close")
    def come_back(*_: object) -> None:
        # What another thread would do at this moment.
        while held:
            held.pop().close()

    watched = watch(engine, registry=registry)
    held.append(engine.connect())
    engine.connect().close()
    age(watched, 61)
    with engine.connect():
        pass
    # The one that was replaced finds no place when it comes back itself.
    assert {"recycle": 1, "overflow": 1} == moved(watched.snapshot().closes_total)
    assert {"recycle": 1} == moved(watched.snapshot().reconnects_total)


def test_detached_while_another_uses_the_place(registry: CollectorRegistry) -> None:
    """A record is back in its pool before we hear of the detach: who uses it meanwhile has leaked nothing."""
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0)
    # What another thread would do at this moment.
    event.listen(engine, "detach", lambda *_: engine.connect().close())
    watched = watch(engine, registry=registry)
    engine.connect().detach()
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert (2, 0, {"detached": 1}) == (snapshot.checkouts_total, snapshot.leaks_total, moved(snapshot.closes_total))


def test_back_in_an_abandoned_pool(registry: CollectorRegistry) -> None:
    """A connection that lies in a pool left behind by dispose() is nobody's idle one, whoever still waits there."""
    shared = {"check_same_thread": False}
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0, connect_args=shared)
    watched = watch(engine, registry=registry)
    held = engine.connect()
    waiter = Thread(target=lambda: engine.connect().close())
    seen: list[Mapping[str, int]] = []
    event.listen(engine, "checkin", lambda *_: seen.append(watched.snapshot().connections))
    waiter.start()
    wait_for(lambda: watched.snapshot().pending_checkouts == 1, "a caller who waits")
    engine.dispose()
    held.close()
    waiter.join()
    assert [{"checked_out": 0, "idle": 0, "condemned": 0, "dead": 0}] * 2 == seen
    assert_books(watched.snapshot())
