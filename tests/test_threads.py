"""The books of sync engines that many threads use, read, age and lose connections of at once."""

from __future__ import annotations

import gc
import logging
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool, SingletonThreadPool

from crowds import PLAIN, ROUTES, TOO_OLD, Crowd, Nature, Visitor
from handles import assert_held, assert_true
from poolwatch import watch
from support import Reader, Tally, moved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry
    from sqlalchemy.pool import Pool

    from poolwatch import PoolSnapshot, Watch
    from poolwatch.demo.servers import MariaDB

THREADS = 12


@pytest.fixture(autouse=True)
def quick_turns() -> Iterator[None]:
    """Let threads interrupt each other often."""
    # Records of the pool's complaints would keep connections alive in their tracebacks.
    logging.disable()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(interval)
    logging.disable(logging.NOTSET)


def collect_garbage() -> None:
    """Collect garbage in whichever thread this is."""
    gc.collect()


def unseen(watched: Watch, wanted: set[str]) -> Callable[[], set[str]]:
    """Return what tells the *wanted* reasons, of closes and of failures, that the books do not have yet."""

    def missing() -> set[str]:
        snapshot = watched.snapshot()
        return wanted - moved(snapshot.closes_total).keys() - moved(snapshot.checkout_failures_total).keys()

    return missing


def assert_counted(snapshot: PoolSnapshot, tally: Tally, visitors: list[Visitor]) -> None:
    """Assert that the books have what those have counted who asked for connections, and nothing but that."""
    failures = snapshot.checkout_failures_total
    assert failures is not None
    assert (tally.got, tally.failed) == (snapshot.checkouts_total, sum(failures.values()))
    assert 0 == snapshot.connections["checked_out"]
    # Whatever happens to a connection, one of them had it.
    owners = {route for _, route in snapshot.route_checkouts_total}
    assert ({"none", "other"}, len(ROUTES)) == (owners - set(ROUTES), len(owners))
    assert sum(visitor.timeouts for visitor in visitors) == failures["timeout"]
    assert sum(visitor.leaks for visitor in visitors) == snapshot.leaks_total
    assert sum(visitor.detachings for visitor in visitors) == snapshot.closes_total["detached"]


@pytest.mark.parametrize("pre_ping", [True, False])
def test_queue(mariadb: MariaDB, registry: CollectorRegistry, *, pre_ping: bool) -> None:
    """Threads that queue, invalidate, detach and leak among kills, ageing and dispose() leave true books.

    With a ping or with a guard.
    """
    engine = create_engine(
        mariadb.url("pymysql"),
        connect_args=PLAIN,
        pool_size=3,
        max_overflow=2,
        pool_timeout=0.03,
        pool_recycle=TOO_OLD - 1,
        pool_pre_ping=pre_ping,
    )
    tally = Tally(engine.pool)
    watched = watch(engine, guard=not pre_ping, registry=registry)
    wanted = {"recycle", "soft_invalidated", "pool_invalidated", "invalidated", "overflow", "disposed", "detached"}
    # What meets a connection that was killed, before a statement does.
    wanted |= {"timeout", "pre_ping" if pre_ping else "guard_dead"}
    visitors = [Visitor(engine, seed, unseen(watched, wanted)) for seed in range(THREADS)]
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
    assert_counted(snapshot, tally, visitors)
    # A return meets some that were killed, and a statement some that were killed in it.
    assert set() == moved(snapshot.closes_total).keys() - wanted - {"disconnect", "reset_failed", "failed"}
    engine.dispose()
    assert_true(mariadb, watched)


@pytest.mark.parametrize(
    ("poolclass", "options", "own"),
    [
        (NullPool, {}, {"unpooled"}),
        (SingletonThreadPool, {"pool_size": THREADS}, {"recycle", "soft_invalidated", "pool_invalidated"}),
    ],
    ids=["NullPool", "SingletonThreadPool"],
)
def test_pools_without_a_queue(
    mariadb: MariaDB,
    registry: CollectorRegistry,
    poolclass: type[Pool],
    options: dict[str, int],
    own: set[str],
) -> None:
    """A pool that gives a connection to each caller, or to each thread, keeps true books among kills and ageing too."""
    engine = create_engine(
        mariadb.url("pymysql"), connect_args=PLAIN, poolclass=poolclass, pool_recycle=TOO_OLD - 1, **options
    )
    tally = Tally(engine.pool)
    watched = watch(engine, registry=registry)
    wanted = {"invalidated", "detached", "disconnect", *own}
    # A thread that leaks a SingletonThreadPool's connection is given it again.
    leaks = poolclass is NullPool
    visitors = [Visitor(engine, seed, unseen(watched, wanted), leaks=leaks) for seed in range(THREADS)]
    nature = Nature(mariadb, watched)
    with Crowd() as crowd:
        for visitor in visitors:
            crowd.work(visitor)
        crowd.repeat(Reader(watched), 0.002)
        crowd.repeat(nature.kill, 0.01)
        crowd.repeat(nature.age, 0.05)
        crowd.repeat(collect_garbage, 0.02)
        if poolclass is NullPool:
            # The other closes on dispose() what threads hold, and trips over those that come at that moment.
            crowd.repeat(engine.dispose, 0.1)
    nature.close()
    for visitor in visitors:
        visitor.close()
    gc.collect()
    snapshot = assert_held(watched)
    assert_counted(snapshot, tally, visitors)
    # A reader may meet what is on its way back to a NullPool that was disposed of.
    assert set() == moved(snapshot.closes_total).keys() - wanted - {"reset_failed", "failed", "disposed"}
    engine.dispose()
    assert_true(mariadb, watched)
