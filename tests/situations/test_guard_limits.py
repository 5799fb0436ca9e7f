"""The guard and limits: when a connection has been silent for so long that a checkout replaces it."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.util import greenlet_spawn

from support import moved, quiet, use

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stage import Stage

pytestmark = pytest.mark.anyio

LIMIT = 100.0
DUE = {"guard_deadline": 1}


@pytest.mark.parametrize(("limit", "patience"), [(LIMIT, 98.0), (10.0, 9.0), (1.0, 0.5)])
async def test_deadline(stage: Stage, limit: float, patience: float) -> None:
    """One whose inactivity has come within the margin of its limit is replaced, and none before."""
    engine, watched = stage.guarded(limit)
    await use(engine)
    quiet(watched, patience - 0.25)
    await use(engine)
    await stage.check(idle=1)
    quiet(watched, patience)
    await use(engine)
    await stage.check(DUE, DUE, idle=1)
    # It was alive, so nobody has found one lost.
    assert {} == moved(watched.snapshot().disconnects_total)


async def test_the_sessions_own_limit(stage: Stage) -> None:
    """The server's limit is known from the first checkout on, and rules where it is the smaller one."""
    stage.server.drop_inactive(int(LIMIT))
    try:
        engine, watched = stage.guarded(2 * LIMIT)
        await use(engine)
    finally:
        stage.server.drop_inactive(None)
    quiet(watched, LIMIT)
    await use(engine)
    await stage.check(DUE, DUE, idle=1)


async def test_a_limit_that_is_asked_for_later(stage: Stage) -> None:
    """A session that was handed out unasked, for want of a good moment, has its limit counted once it is known."""
    stage.server.drop_inactive(int(LIMIT))
    try:
        engine, watched = stage.guarded()
        question = watched._listeners.question
        question._quiet_until = watched._ledger.clock() + 1e9
        for _ in range(2):
            await use(engine)
    finally:
        stage.server.drop_inactive(None)
    question._quiet_until = None
    await use(engine)
    quiet(watched, LIMIT)
    await use(engine)
    await stage.check(DUE, DUE, idle=1)


async def test_no_limit_known(stage: Stage) -> None:
    """Without a limit nothing is replaced for its silence."""
    engine = stage.engine()
    (watched,) = stage.watches
    watched.adjust({"guard": True, "server_limits": False})
    await use(engine)
    quiet(watched, 1e9)
    await use(engine)
    await stage.check(idle=1)


async def test_a_limit_that_is_told_later(stage: Stage) -> None:
    """What an operator says of a pool in use counts from then on."""
    engine, watched = stage.guarded()
    await use(engine)
    quiet(watched, LIMIT)
    await use(engine)
    watched.adjust({"inactivity_limit": LIMIT})
    quiet(watched, LIMIT)
    await use(engine)
    await stage.check(DUE, DUE, idle=1)


async def test_in_a_transaction(stage: Stage) -> None:
    """Where the pool ends no transaction, the limits for one count, while there is one."""

    def leave(statement: str, *, in_transaction: bool) -> None:
        raw = engine.sync_engine.raw_connection()
        cursor = raw.cursor()
        cursor.execute(statement)
        cursor.close()
        if not in_transaction:
            raw.rollback()
        raw.close()

    with _limit_in_a_transaction(stage):
        engine, watched = stage.guarded(pool_reset_on_return=None)
        await greenlet_spawn(partial(leave, "SELECT 1", in_transaction=False))
    for in_transaction in (False, True):
        quiet(watched, LIMIT)
        await greenlet_spawn(partial(leave, "BEGIN", in_transaction=in_transaction))
    await stage.check(idle=1)
    quiet(watched, LIMIT)
    await greenlet_spawn(partial(leave, "SELECT 1", in_transaction=False))
    await stage.check(DUE, DUE, idle=1)


async def test_a_limit_in_a_transaction_explains_no_loss_outside(stage: Stage) -> None:
    """One that was killed while it lay idle had reached no limit, however long a transaction may be silent."""
    with _limit_in_a_transaction(stage):
        engine, watched = stage.guarded()
        (number,) = await stage.fill(engine, 1)
    quiet(watched, LIMIT)
    await stage.lose(number)
    await use(engine)
    ((cause, phase),) = moved(watched.snapshot().disconnects_total)
    # asyncpg may have dropped the server's last word.
    assert ("guard", True) == (phase, cause in {"killed", "unknown"})


@contextmanager
def _limit_in_a_transaction(stage: Stage) -> Iterator[None]:
    """Let the server drop connections that are opened meanwhile after a silence in a transaction, and only then."""
    if stage.driver.mysql:
        setting, unset = "SET GLOBAL idle_transaction_timeout = {}", "SET GLOBAL idle_transaction_timeout = DEFAULT"
    else:
        setting = "ALTER ROLE app SET idle_in_transaction_session_timeout = '{}s'"
        unset = "ALTER ROLE app RESET idle_in_transaction_session_timeout"
    stage.server.query(setting.format(f"{LIMIT:.0f}"))
    try:
        yield
    finally:
        stage.server.query(unset)
