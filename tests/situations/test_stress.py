"""Everything at once, and the books still agree with the driver's own account."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import TYPE_CHECKING

import pytest

from poolwatch.requests import NOBODY, Account, Terms, current
from stage import OLDEST, ending
from support import Reader, moved, run, until

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from stage import Stage

pytestmark = pytest.mark.anyio

TASKS = 1500
KILLS = 12
CERTAIN = {"cancelled", "recycle"}
PLAUSIBLE = {
    "cancelled",
    "disconnect",
    "failed",
    "invalidated",
    "overflow",
    "pool_invalidated",
    "pre_ping",
    "recycle",
    "reset_failed",
}


@pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")
async def test_stress(stage: Stage) -> None:
    """1,500 callers on seven places, with short timeouts, invalidations, kills and connections that grow too old."""
    engine = stage.engine(pool_size=4, max_overflow=3, pool_timeout=0.15, pool_recycle=60, pool_pre_ping=True)
    others = asyncio.all_tasks()
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    chance = random.Random(7)  # noqa: S311
    stop = asyncio.Event()
    reading = asyncio.create_task(_read(stage, stop))
    await asyncio.gather(_kill(stage), *(_use(stage, engine, chance) for _ in range(TASKS)))
    stop.set()
    await reading
    await stage.wake()
    # What cancelled callers left behind may still be at it, or hold places.
    await until(lambda: asyncio.all_tasks() <= others, "the end of every task")
    await stage.hear()
    gc.collect()
    # Met by a ping, whatever else has been lost.
    await stage.fill(engine, 4)
    await stage.settle(4)
    snapshot = stage.watches[0].snapshot()
    # Of others: asyncpg leaves the futures of lost connections unread, the oldest SQLAlchemy some tasks of its own.
    unread = {"Future": stage.driver.name == "asyncpg", "Task": OLDEST}
    assert {f"{each} exception was never retrieved" for each in unread if unread[each]} >= set(complaints)
    assert {NOBODY, ("GET", "/items/{id}")} == set(snapshot.route_checkouts_total)
    assert set(moved(snapshot.closes_total)) >= CERTAIN
    assert PLAUSIBLE | ({"leaked"} if OLDEST else set()) >= set(moved(snapshot.closes_total))
    assert snapshot.checkout_failures_total is not None
    # What a ping met and SQLAlchemy did not take for a lost connection is counted there alone.
    pings = sum(value for (_, phase), value in snapshot.disconnects_total.items() if phase == "ping_failed")
    assert TASKS + 4 == snapshot.checkouts_total + sum(snapshot.checkout_failures_total.values()) + pings
    closes, failures = moved(snapshot.closes_total), moved(snapshot.checkout_failures_total)
    # Sockets that a driver strands may be of connections that were never established.
    dropped = max(0, len(stage.server.connections()) - 4)
    await stage.check(
        closes, moved(snapshot.reconnects_total), idle=4, dropped=dropped, leaks=snapshot.leaks_total, failures=failures
    )


async def _use(stage: Stage, engine: AsyncEngine, chance: random.Random) -> None:
    await asyncio.sleep(chance.random() * 2)
    patience = chance.choice([0.0006, 0.0012, 0.002, 0.003, 0.005, 0.05, 0.2, 1.0])
    if chance.random() < 0.7:
        current.set(Account(object(), Terms(lambda _: ("GET", "/items/{id}"), 1)))
    nap, invalidates = chance.choice([0, 0, 0.01, 0.03, 0.1]), chance.random() < 0.05

    async def work() -> None:
        async with asyncio.timeout(patience), engine.connect() as connection:
            await run(connection, stage.nap(nap))
            if invalidates:
                await connection.invalidate()

    await ending(work())


async def _kill(stage: Stage) -> None:
    for _ in range(KILLS):
        await asyncio.sleep(0.1)
        stage.age()
        await asyncio.sleep(0.1)
        for each in stage.server.connections()[:1]:
            stage.server.kill(each)


async def _read(stage: Stage, stop: asyncio.Event) -> None:
    reader = Reader(stage.watches[0])
    while not stop.is_set():
        reader()
        await asyncio.sleep(0.01)
