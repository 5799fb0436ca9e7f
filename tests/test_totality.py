"""Nothing of ours fails a user's request, loses a connection, blocks or grows."""

from __future__ import annotations

import gc
import logging
import sqlite3
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.exc import TimeoutError  # noqa: A004
from sqlalchemy.pool import QueuePool

from poolwatch import watch
from poolwatch.activity import ActivityListeners
from poolwatch.closing import ClosingListeners
from poolwatch.ledger import FOLD_AT, SWEEP_AT, Ledger
from poolwatch.listeners import PoolListeners
from poolwatch.reader import PoolReader
from support import assert_books, moved, run, use

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolwatch.demo.servers import MariaDB

    MakeEngine = Callable[..., AsyncEngine]

# What each listener calls first of ours, so that its failing makes the listener fail.
HANDLERS = [
    (owner, name)
    for owner, names in (
        (PoolListeners, ("on_do_connect", "on_connect", "first_checkout", "odd_checkin", "on_detach")),
        (ClosingListeners, ("on_invalidate", "on_soft_invalidate", "on_close", "on_handle_error")),
        (ActivityListeners, ("on_before_cursor_execute", "on_after_cursor_execute", "on_commit", "on_rollback")),
    )
    for name in names
]
HOT = ["checkout", "checkin", "pool.connect"]


def fail(*_: Any, **__: Any) -> None:
    """Stand for a mistake of ours."""
    message = "secret"
    raise ZeroDivisionError(message)


async def everything(engine: AsyncEngine) -> None:
    """Make every event fire."""
    assert 1 == await use(engine)
    async with engine.connect() as connection:
        await run(connection, "SELECT 1")
        await connection.commit()
        (await connection.get_raw_connection()).invalidate(soft=True)
    async with engine.connect() as connection:
        await run(connection, "SELECT 1")
        await connection.rollback()
        await connection.invalidate()
        await run(connection, "SELECT 1")
    async with engine.connect() as connection:
        (await connection.get_raw_connection()).detach()
    with pytest.raises(Exception, match="1064"):
        await use(engine, "NO SUCH STATEMENT")
    await engine.dispose()
    assert 1 == await use(engine)


@pytest.mark.anyio
@pytest.mark.parametrize(("owner", "handler"), HANDLERS, ids=lambda each: getattr(each, "__name__", each))
async def test_a_listener_that_fails(
    mariadb: MariaDB,
    make_engine: MakeEngine,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    handler: str,
) -> None:
    """The user notices nothing, the failures are counted, the first one is logged without its text."""
    monkeypatch.setattr(owner, handler, fail)
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=5)
    watched = watch(engine, registry=registry)
    await everything(engine)
    await everything(engine)
    assert 0 < watched.snapshot().internal_errors_total
    watched.snapshot()
    (record,) = [each for each in caplog.records if each.name == "poolwatch"]
    assert "ZeroDivisionError" in record.getMessage()
    assert "secret" not in record.getMessage()
    assert 1 == len(mariadb.connections())


class BrokenInfo(dict[str, Any]):
    """A record's dictionary that fails whoever looks into it."""

    __getitem__ = get = __contains__ = __setitem__ = fail  # type: ignore[assignment]


@pytest.mark.anyio
async def test_the_hot_path_that_fails(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """The listeners with a guard of their own keep errors from the user as well, and say where they were."""
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=5)
    await use(engine)
    watched = watch(engine, registry=registry)
    (slot,) = watched._ledger.slots.values()
    record = slot.record()
    record.__dict__["record_info"] = BrokenInfo()
    assert 1 == await use(engine)
    assert 1 == await use(engine)
    assert 2 * len(HOT) <= watched.snapshot().internal_errors_total
    assert 1 == len(mariadb.connections())


@pytest.mark.anyio
async def test_a_reader_that_fails(
    make_engine: MakeEngine,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A pool that cannot be read loses its own series and nobody else's, and one line says so."""
    broken, whole = make_engine(pool_logging_name="broken"), make_engine(pool_logging_name="whole")
    watch(broken, registry=registry)
    watch(whole, registry=registry)
    read = PoolReader.read

    def read_one(reader: PoolReader, engine: Engine) -> Any:
        return fail() if engine is broken.sync_engine else read(reader, engine)

    monkeypatch.setattr(PoolReader, "read", read_one)
    for _ in range(2):
        assert None is registry.get_sample_value("sqlalchemy_pool_size", {"pool": "broken"})
    (record,) = [each for each in caplog.records if each.name == "poolwatch"]
    assert "'broken'" in record.getMessage()
    assert 5.0 == registry.get_sample_value("sqlalchemy_pool_size", {"pool": "whole"})


def free_engine(**options: Any) -> Engine:
    """Return a sync engine whose connections cost nothing."""
    return create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(":memory:", check_same_thread=False),
        poolclass=QueuePool,
        **options,
    )


def test_listeners_inside_the_garbage_collector(registry: CollectorRegistry) -> None:
    """A leak that is collected in the middle of a fold, by the thread that folds, does not wait for itself."""
    engine = free_engine()
    watched = watch(engine, registry=registry)
    leaks = 3
    held = [engine.raw_connection() for _ in range(leaks)]
    finished = threading.Event()

    def collect_while_folding() -> None:
        with watched._ledger._lock:
            held.clear()
            gc.collect()
            for _ in range(FOLD_AT):
                watched._ledger.count("checkout_waits_total")
        finished.set()

    threading.Thread(target=collect_while_folding, daemon=True).start()
    assert finished.wait(20), "a listener waited for a lock that its own thread held"
    snapshot = watched.snapshot()
    assert leaks == snapshot.leaks_total
    assert_books(snapshot)


def test_counting_waits_that_fails(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is ours before the pool is asked is kept from the caller too."""
    engine = free_engine(pool_size=1, max_overflow=0, pool_timeout=0)
    watched = watch(engine, registry=registry)
    held = engine.raw_connection()
    with monkeypatch.context() as patched:
        patched.setattr(watched._ledger, "count", fail)
        with pytest.raises(TimeoutError):
            engine.raw_connection()
    held.close()
    assert 1 == watched.snapshot().internal_errors_total


def test_collected_in_the_middle_of_returns(registry: CollectorRegistry) -> None:
    """A collection in the middle of every return, with a leak waiting each time, keeps the books true."""
    engine = free_engine(pool_size=3)
    watched = watch(engine, registry=registry)

    class Cycle:
        def __init__(self) -> None:
            self.itself = self
            self.connection = engine.raw_connection()

    @event.listens_for(engine, "checkin")
    def collect(_dbapi: Any, _record: Any) -> None:
        gc.collect()

    for _ in range(50):
        Cycle()
        engine.raw_connection().close()
    gc.collect()
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert (50, 100) == (snapshot.leaks_total, snapshot.checkouts_total)


def test_memory_stays_flat(registry: CollectorRegistry) -> None:
    """Nobody reads, and ten folds' worth of checkouts leave no more behind than one."""
    engine = free_engine()
    watched = watch(engine, registry=registry)

    def cycles(number: int) -> None:
        for _ in range(number):
            engine.raw_connection().close()

    cycles(FOLD_AT + 1)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        cycles(2 * FOLD_AT)
        backlog = sum(len(histogram.backlog) for histogram in watched._ledger._histograms)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert backlog <= 3 * FOLD_AT
    # A float is 24 bytes and its place in a list 8: what may wait to be folded.
    assert after - before < 3 * FOLD_AT * 40
    assert 3 * FOLD_AT + 1 == watched.snapshot().checkouts_total


def test_memory_of_disposed_pools_stays_flat(registry: CollectorRegistry) -> None:
    """Nobody reads, and connections that went with their pools are forgotten all the same."""
    engine = free_engine()
    watched = watch(engine, registry=registry)
    for _ in range(3 * SWEEP_AT):
        engine.raw_connection().close()
        engine.dispose()
    assert len(watched._ledger.slots) <= SWEEP_AT
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert {"disposed": 3 * SWEEP_AT} == moved(snapshot.closes_total)


def test_threads(registry: CollectorRegistry) -> None:
    """Twelve threads, a reader in between: nothing is lost, nothing is negative."""
    engine = free_engine(pool_size=3, max_overflow=2)
    watched = watch(engine, registry=registry)
    rounds, threads = 300, 12
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(rounds):
                with engine.connect():
                    pass
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    while any(thread.is_alive() for thread in running):
        assert 0 <= min(watched.snapshot().connections.values())
    assert [] == errors
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert rounds * threads == snapshot.checkouts_total


def test_logs_only_once(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """However often we fail, one line is logged."""
    watched = watch(engine := free_engine(), registry=registry)
    ledger: Ledger = watched._ledger
    for number in range(3):
        ledger.trouble(f"mistake {number}")
        watched.snapshot()
    (record,) = caplog.records
    assert (logging.ERROR, True) == (record.levelno, "mistake 0" in record.getMessage())
    engine.dispose()
