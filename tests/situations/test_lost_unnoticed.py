"""aiomysql on uvloop: a write to a connection that was reset raises a plain RuntimeError.

SQLAlchemy does not take that for a lost connection. The transport knows better, so the reasons are the same as
elsewhere; but nothing condemns the other connections, and some are given back dead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from stage import BEFORE_2_1, OLDEST, ending
from support import moved, run, use

if TYPE_CHECKING:
    from stage import Stage

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.only("aiomysql-uvloop"),
    pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up"),
]


@pytest.mark.parametrize(
    ("options", "reason", "phase"),
    [
        ({}, "disconnect", "in_use"),
        ({"pool_pre_ping": True}, "pre_ping", "ping_failed"),
    ],
)
async def test_silence(stage: Stage, options: dict[str, Any], reason: str, phase: str) -> None:
    """Each of two connections fails its own user, pre-ping or not."""
    engine = stage.engine(**options)
    with stage.short_sessions():
        await stage.fill(engine, 2)
    await stage.silence()
    await stage.check(idle=2, lost=2)
    for _ in range(2):
        assert isinstance(await ending(use(engine)), RuntimeError)
    if BEFORE_2_1 and reason == "disconnect":
        # A return that fails with an error like this gives nothing back there.
        await stage.check({"leaked": 2}, leaks=2)
    else:
        await stage.check({reason: 2})
        await use(engine)
        await stage.check({reason: 2}, {reason: 1}, idle=1)
    assert {("inactivity", phase): 2} == moved(stage.watches[0].snapshot().disconnects_total)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param(
            {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True},
            marks=pytest.mark.skipif(OLDEST, reason="SQLAlchemy has skip_autocommit_rollback since 2.0.43"),
        ),
    ],
)
async def test_silence_without_reset(stage: Stage, options: dict[str, Any]) -> None:
    """Where the pool sends nothing on return, a failed statement's connection goes back dead, and we say so."""
    engine = stage.engine(pool_reset_on_return=None, **options)
    with stage.short_sessions():
        await stage.fill(engine, 2)
    await stage.silence()
    for _ in range(2):
        assert isinstance(await ending(use(engine)), RuntimeError)
    if BEFORE_2_1 and not options:
        # As above.
        await stage.check({"leaked": 2}, leaks=2)
    else:
        assert isinstance(await ending(use(engine)), RuntimeError)
        await stage.check(idle=2, lost=2)
        assert 2 == stage.watches[0].snapshot().connections["dead"]


async def test_silence_in_a_transaction(stage: Stage) -> None:
    """After a failed COMMIT nothing is sent on return: the connection goes back dead."""
    engine = stage.engine()
    session = AsyncSession(engine)
    with stage.short_sessions():
        await session.execute(text("SELECT 1"))
    await stage.silence()
    assert isinstance(await ending(session.execute(text("SELECT 1"))), RuntimeError)
    assert isinstance(await ending(session.commit()), RuntimeError)
    await session.close()
    await stage.check(idle=1, lost=1)
    assert 1 == stage.watches[0].snapshot().connections["dead"]


async def test_silence_before_a_commit(stage: Stage) -> None:
    """So it does when the COMMIT is the first to meet the loss."""
    engine = stage.engine()
    session = AsyncSession(engine)
    with stage.short_sessions():
        await session.execute(text("SELECT 1"))
    await stage.silence()
    assert isinstance(await ending(session.commit()), RuntimeError)
    await session.close()
    await stage.check(idle=1, lost=1)
    assert 1 == stage.watches[0].snapshot().connections["dead"]


async def test_silence_before_a_close(stage: Stage) -> None:
    """The rollback that closing a Connection sends finds it lost, as it would on another loop."""
    engine = stage.engine()
    with stage.short_sessions():
        connection = await engine.connect()
        await run(connection, "SELECT 1")
    await stage.silence()
    assert isinstance(await ending(connection.close()), RuntimeError)
    if BEFORE_2_1:
        await stage.check(out=1, lost=1)
    else:
        await stage.check({"disconnect": 1})
