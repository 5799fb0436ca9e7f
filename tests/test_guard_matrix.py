"""Behind the guard no user gets an error, whatever has ended every connection of the pool, with every driver.

What other remedies leave to users, ``make remedies`` measures.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from doomed import POOL, SITUATIONS, SIZE, Refusal, Rush
from support import DEADLINE, assert_books, moved, quiet, until
from variants import VARIANTS, on_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from doomed import Situation
    from variants import TlsServer, Variant, WatchedPool

pytest_plugins = ["tls"]
pytestmark = [pytest.mark.anyio, pytest.mark.once]

# How often another application's listener refuses what a checkout is offered first, or has opened.
REFUSALS = [(False, 0), (False, 2 * SIZE), (True, SIZE)]
# Seconds of silence that no other connection comes to on however slow a machine.
FAR = 100.0


async def end_and_use(pool: WatchedPool, situation: Situation, server: TlsServer, refusal: Refusal, times: int) -> None:
    """Fill the pool, let its connections end, send all users, and empty it."""
    pool.watched.adjust({"inactivity_limit": None if situation.path_limit is None else FAR})
    with situation.enter(server) as way:
        pool.port = way.port
        await pool.fill(*[way.statement] * SIZE)
        await way.end()
        if situation.loss == "guard_dead":
            await until(lambda: {"dead": SIZE} == pool.states(), "the end of all")
        else:
            quiet(pool.watched, FAR)
        refusal.start(times)
        errors = await Rush(pool, patience=DEADLINE).run()
        await pool.call(pool.engine.dispose)
    assert {} == errors, situation


@on_each(VARIANTS)
async def test_no_user_gets_an_error(
    variant: Variant, make_pool: Callable[..., WatchedPool], server: TlsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Of ten connections that ended each is replaced, once, in a checkout that nobody else's listener can spoil.

    Nothing is sent for it, and nothing logged.
    """
    # Of the two orders and three listeners each pair is met three times, with TLS and without.
    number = VARIANTS.index(variant)
    fresh, times = REFUSALS[number % 3]
    caplog.set_level(logging.ERROR, "sqlalchemy.pool")
    pool = make_pool(watching={"guard": True}, **POOL, pool_use_lifo=bool(number // 3 % 2))
    refusal = Refusal(fresh=fresh)
    event.listen(pool.engine, "checkout", refusal)
    reconnects: Counter[str] = Counter()
    for emptied, situation in enumerate(SITUATIONS, 1):
        await end_and_use(pool, situation, server, refusal, times)
        reconnects += Counter({situation.loss: SIZE, "invalidated": times})
        snapshot = pool.watched.snapshot()
        assert_books(snapshot)
        assert reconnects == moved(snapshot.reconnects_total), situation
        assert reconnects + Counter(disposed=emptied * SIZE) == moved(snapshot.closes_total), situation
        # All were met by the guard, and none by a user or a ping.
        phases = [phase for (_, phase), count in snapshot.disconnects_total.items() for _ in range(count)]
        assert ["guard"] * reconnects["guard_dead"] == phases, situation
        assert 0 == snapshot.pre_pings_total
        assert [] == [record for record in caplog.records if record.levelno >= logging.ERROR]


@on_each(VARIANTS)
async def test_nothing_is_sent(make_pool: Callable[..., WatchedPool], server: TlsServer) -> None:
    """A living connection is handed out, and taken back, without a word to the server."""
    pool = make_pool(watching={"guard": True, "server_limits": False}, pool_reset_on_return=None)
    await pool.fill("SELECT 1", "SELECT 1")
    before = server.heard()
    for _ in range(10):
        await pool.call(lambda: pool.engine.raw_connection().close())
    assert before == server.heard()
    assert 12 == pool.watched.snapshot().checkouts_total
