"""Every pool class in every situation: the books are true, and each close has the reason that the table says."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy.pool
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import (
    AssertionPool,
    AsyncAdaptedQueuePool,
    NullPool,
    Pool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)
from sqlalchemy.util import await_only, greenlet_spawn

from pool_scenes import (
    TOO_OLD,
    FileScene,
    Scene,
    detached,
    disposed,
    disposed_while_held,
    fails_at_checkout,
    invalidated,
    killed,
    killed_and_pinged,
    leaked,
    not_reset,
    one_of_two_killed,
    recycled,
    refused,
    refused_a_second,
    rejected_at_checkout,
    silent,
    silent_while_held,
    softly_invalidated,
    two_at_once,
    used_twice,
)
from poolwatch import watch
from poolwatch.labels import REPLACED
from random_driver import Driver
from support import moved

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prometheus_client import CollectorRegistry

    from poolwatch.demo.servers import MariaDB

    Situation = Callable[[Scene], None]

INFINITE = float("inf")
QUEUE, NULL, STATIC, SINGLETON, ASSERTION = "queue", "null", "static", "singleton", "assertion"
SYNC: dict[type[Pool], str] = {
    QueuePool: QUEUE,
    NullPool: NULL,
    StaticPool: STATIC,
    SingletonThreadPool: SINGLETON,
    AssertionPool: ASSERTION,
}
ASYNC: dict[type[Pool], str] = {
    AsyncAdaptedQueuePool: QUEUE,
    NullPool: NULL,
    StaticPool: STATIC,
    AssertionPool: ASSERTION,
}
if hasattr(sqlalchemy.pool, "FallbackAsyncAdaptedQueuePool"):
    # Gone in SQLAlchemy 2.1.
    ASYNC[sqlalchemy.pool.FallbackAsyncAdaptedQueuePool] = QUEUE


def everywhere(closes: dict[str, int], **others: dict[str, int]) -> dict[str, dict[str, int]]:
    """Return *closes* for every kind of pool but *others*."""
    return {**dict.fromkeys((QUEUE, NULL, STATIC, SINGLETON, ASSERTION), closes), **others}


# What the reasons of all closes add up to, by kind of pool.
CLOSES: dict[Situation, dict[str, dict[str, int]]] = {
    used_twice: everywhere({}, null={"unpooled": 2}),
    two_at_once: {QUEUE: {"overflow": 1}, NULL: {"unpooled": 2}, SINGLETON: {}, STATIC: {}},
    refused_a_second: {ASSERTION: {}},
    invalidated: everywhere({"invalidated": 1}, null={"invalidated": 1, "unpooled": 1}),
    softly_invalidated: everywhere({"soft_invalidated": 1}, null={"unpooled": 2}),
    leaked: everywhere({}, null={"unpooled": 2}),
    detached: everywhere({"detached": 1}, null={"detached": 1, "unpooled": 1}),
    disposed: everywhere({"disposed": 1}, null={"unpooled": 2}),
    disposed_while_held: everywhere({"disposed": 1}, null={"unpooled": 2}),
    recycled: everywhere({"recycle": 1}, null={"unpooled": 2}),
    killed: everywhere({"disconnect": 1}, null={"unpooled": 2}),
    killed_and_pinged: everywhere({"pre_ping": 1}, null={"unpooled": 2}),
    one_of_two_killed: {QUEUE: {"disconnect": 1, "pool_invalidated": 1}},
    silent: {each: {"disconnect": 1} for each in (QUEUE, STATIC, SINGLETON, ASSERTION)},
    silent_while_held: {NULL: {"disconnect": 1, "unpooled": 1}},
    fails_at_checkout: everywhere({"invalidated": 1}, null={"invalidated": 1, "unpooled": 1}),
    rejected_at_checkout: everywhere({"invalidated": 1}, null={"invalidated": 1, "unpooled": 2}),
    not_reset: everywhere({"reset_failed": 1}, null={"reset_failed": 1, "unpooled": 1}),
    refused: everywhere({}, null={"unpooled": 1}),
}
# On an async engine a leaked connection cannot be given back.
CLOSES_ASYNC = {**CLOSES, leaked: everywhere({"leaked": 1}, null={"leaked": 1, "unpooled": 1})}
# What needs no server.
ON_FILES = (
    used_twice,
    two_at_once,
    invalidated,
    softly_invalidated,
    leaked,
    detached,
    disposed,
    recycled,
    fails_at_checkout,
    rejected_at_checkout,
    not_reset,
)
FAILURES: dict[Situation, dict[str, int]] = {
    refused: {"connect": 2},
    refused_a_second: {"other": 1},
    fails_at_checkout: {"other": 1},
}
SIZES: dict[str | Situation, tuple[float, float, float]] = {
    one_of_two_killed: (2, 3, 30),
    QUEUE: (1, 2, 30),
    NULL: (0, INFINITE, INFINITE),
    STATIC: (1, 1, INFINITE),
    SINGLETON: (5, 5, INFINITE),
    ASSERTION: (1, 1, INFINITE),
}


def cells(kinds: dict[type[Pool], str], table: dict[Situation, dict[str, dict[str, int]]]) -> list[Any]:
    """Return one parameter for each situation of each class."""
    return [
        pytest.param(situation, each, kind, closes[kind], id=f"{situation.__name__}-{each.__name__}")
        for situation, closes in table.items()
        for each, kind in kinds.items()
        if kind in closes
    ]


def options(situation: Situation, poolclass: type[Pool]) -> dict[str, Any]:
    """Return what ``create_engine`` is told."""
    told = {"poolclass": poolclass, "pool_recycle": TOO_OLD - 1, "pool_pre_ping": situation is killed_and_pinged}
    size = 2 if situation is one_of_two_killed else 1
    return told | ({"pool_size": size, "max_overflow": 1} if issubclass(poolclass, QueuePool) else {})


def play(scene: Scene, situation: Situation, kind: str, closes: dict[str, int]) -> None:
    """Act *situation* out and hold the books against the table."""
    situation(scene)
    snapshot = scene.finish()
    assert closes == moved(snapshot.closes_total)
    replaced = {reason: number for reason, number in closes.items() if reason in REPLACED}
    # What a NullPool opens for the next caller stands in nobody's place.
    replaces = kind != NULL or situation is rejected_at_checkout
    assert (replaced if replaces else {}) == moved(snapshot.reconnects_total)
    assert FAILURES.get(situation, {}) == moved(snapshot.checkout_failures_total)
    size = SIZES.get(situation, SIZES[kind])
    assert size == (snapshot.size, snapshot.connections_limit, snapshot.checkout_timeout_seconds)
    assert (1 if situation is leaked else 0) == snapshot.leaks_total
    scene.engine.dispose()
    scene.check()


@pytest.mark.parametrize(("situation", "poolclass", "kind", "closes"), cells(SYNC, CLOSES))
def test_sync(
    mariadb: MariaDB,
    registry: CollectorRegistry,
    situation: Situation,
    poolclass: type[Pool],
    kind: str,
    closes: dict[str, int],
) -> None:
    """A pool of an engine whose driver blocks."""
    engine = create_engine(mariadb.url("pymysql"), connect_args={"ssl_disabled": True}, **options(situation, poolclass))
    play(Scene(mariadb, engine, watch(engine, registry=registry), time.sleep), situation, kind, closes)


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")
@pytest.mark.parametrize(("situation", "poolclass", "kind", "closes"), cells(ASYNC, CLOSES_ASYNC))
async def test_async(
    mariadb: MariaDB,
    registry: CollectorRegistry,
    situation: Situation,
    poolclass: type[Pool],
    kind: str,
    closes: dict[str, int],
) -> None:
    """A pool of an async engine."""
    engine = create_async_engine(mariadb.url("aiomysql"), **options(situation, poolclass))
    scene = Scene(mariadb, engine.sync_engine, watch(engine, registry=registry), _pause)
    # As AsyncConnection.run_sync() does: one play for both kinds of engine.
    await greenlet_spawn(play, scene, situation, kind, closes)


def _pause(seconds: float) -> None:
    await_only(asyncio.sleep(seconds))


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")
@pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ],
)
@pytest.mark.parametrize(
    ("situation", "poolclass", "kind", "closes"),
    cells(
        {AsyncAdaptedQueuePool: QUEUE, StaticPool: STATIC},
        {situation: CLOSES_ASYNC[situation] for situation in ON_FILES},
    ),
)
async def test_aiosqlite(
    tmp_path: Path,
    registry: CollectorRegistry,
    situation: Situation,
    poolclass: type[Pool],
    kind: str,
    closes: dict[str, int],
) -> None:
    """A pool of connections to a file, each a thread of its driver's."""
    driver = Driver([])
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path}/file.db",
        connect_args={"async_creator_fn": driver.connect},
        **options(situation, poolclass),
    )
    watched = watch(engine, registry=registry)
    try:
        await greenlet_spawn(play, FileScene(driver, engine.sync_engine, watched, _pause), situation, kind, closes)
    finally:
        await driver.close()


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("poolclass", "kind"), SYNC.items(), ids=SYNC.values())
def test_late(
    mariadb: MariaDB, registry: CollectorRegistry, poolclass: type[Pool], kind: str, *, again: bool, held: bool
) -> None:
    """A watch that comes late, or anew, has what is open and what is out in its books, and goes on from there."""
    engine = create_engine(
        mariadb.url("pymysql"), connect_args={"ssl_disabled": True}, **options(used_twice, poolclass)
    )
    earlier = [watch(engine, registry=registry)] if again else []
    connection = engine.connect()
    connection.exec_driver_sql("SELECT 1")
    if not held:
        connection.close()
    for each in earlier:
        each.close()
    watched = watch(engine, registry=registry)
    scene = Scene(mariadb, engine, watched, time.sleep)
    kept = held or kind != NULL
    snapshot = scene.finish()
    assert (kept, held) == (snapshot.connects_total, snapshot.checkouts_total)
    assert (held, kept and not held) == (snapshot.connections["checked_out"], snapshot.connections["idle"])
    connection.close()
    scene.use()
    snapshot = scene.finish()
    assert (held + 1, held + 1) == (snapshot.checkouts_total, snapshot.hold_duration_seconds.count)
    assert ({"unpooled": held + 1} if kind == NULL else {}) == moved(snapshot.closes_total)
    watched.close()
    assert poolclass is type(engine.pool)
    engine.dispose()
