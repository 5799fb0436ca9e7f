"""Why connections were found lost, and who met it, on every driver and event loop.

asyncpg keeps nothing of what ended a connection that lay idle; there only its silence, or a server that is down, tells.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, exc
from sqlalchemy.util import greenlet_spawn

from proxies import Proxy
from stage import ending
from support import moved, run, until, use

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from databases import Driver
    from stage import Stage

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up"),
]

PRE_PING = {"pool_pre_ping": True}
found_by = pytest.mark.parametrize(("options", "phase"), [({}, "in_use"), (PRE_PING, "pre_ping")])


def losses(stage: Stage) -> dict[tuple[str, str], int]:
    """Return what the only watch counts as found lost."""
    return moved(stage.watches[0].snapshot().disconnects_total)


def idle_end(driver: Driver, cause: str) -> str:
    """Return what *cause* looks like if it ended a connection that lay idle."""
    return "unknown" if driver.name == "asyncpg" else cause


@found_by
async def test_killed(stage: Stage, options: dict[str, Any], phase: str) -> None:
    """One is closed, another one lives."""
    engine = stage.engine(**options)
    first, _ = await stage.fill(engine, 2)
    await stage.lose(first)
    await ending(use(engine))
    assert {(idle_end(stage.driver, "killed"), phase): 1} == losses(stage)


async def test_killed_alone(stage: Stage) -> None:
    """The only one is closed, and the next comes from the same run of the server."""
    engine = stage.engine()
    await stage.lose(*await stage.fill(engine, 1))
    await ending(use(engine))
    await use(engine)
    assert {(idle_end(stage.driver, "killed"), "in_use"): 1} == losses(stage)


async def test_killed_in_a_statement(stage: Stage) -> None:
    """The connection is closed while it works for somebody."""
    engine = stage.engine()
    await stage.fill(engine, 2)
    task = asyncio.create_task(use(engine, stage.server.sleep))
    await stage.sleeping()
    stage.server.kill(*stage.server.sleepers())
    await ending(task)
    assert {("killed", "in_use"): 1} == losses(stage)


@found_by
async def test_silence(stage: Stage, options: dict[str, Any], phase: str) -> None:
    """The server drops what was silent for the limit that the session was told."""
    engine = stage.engine(**options)
    with stage.short_sessions():
        await stage.fill(engine, 1)
    await stage.silence()
    await ending(use(engine))
    if phase == "pre_ping" and str(stage.driver) == "aiomysql-uvloop":
        # The ping raises a plain RuntimeError there, which its caller gets.
        phase = "ping_failed"
        assert {} == moved(stage.watches[0].snapshot().checkout_failures_total)
    assert {("inactivity", phase): 1} == losses(stage)
    assert None is stage.watches[0].snapshot().shortest_fatal_inactivity_seconds


async def test_silence_in_a_transaction(stage: Stage) -> None:
    """A held connection that the server drops for its silence is met by its next statement, COMMIT or ROLLBACK."""
    engine = stage.engine()
    with stage.short_sessions():
        held = await engine.connect()
        await run(held, "SELECT 1")
    await stage.silence()
    await ending(held.commit())
    assert {("inactivity", "in_use"): 1} == losses(stage)
    await ending(held.close())
    assert {("inactivity", "in_use"): 1} == losses(stage)


@found_by
@pytest.mark.parametrize("connections", [1, 2])
async def test_restart(stage: Stage, options: dict[str, Any], phase: str, connections: int) -> None:
    """The connections that come after were opened in another run of the server."""
    # A server that has just been started has given out so few ids that those of its next run are no lower.
    for _ in range(30):
        stage.server.query("SELECT 1")
    engine = stage.engine(**options)
    await stage.fill(engine, connections)
    await stage.restart()
    for _ in range(2):
        await ending(use(engine))
    assert {("shutdown", phase): 1} == losses(stage)


@found_by
async def test_outage(stage: Stage, options: dict[str, Any], phase: str) -> None:
    """The next attempt to connect finds nobody."""
    engine = stage.engine(**options)
    await stage.fill(engine, 1)
    with stage.outage():
        await stage.hear()
        for _ in range(2):
            await ending(use(engine))
        assert {("shutdown", phase): 1} == losses(stage)


@pytest.mark.never("asyncpg")
async def test_outage_seen_on_the_others(stage: Stage) -> None:
    """Nobody has tried to connect yet, but all others have ended in the same way."""
    engine = stage.engine()
    await stage.fill(engine, 3)
    with stage.outage():
        await stage.hear()
        await ending(use(engine))
        assert {("shutdown", "in_use"): 1} == losses(stage)


async def test_outage_in_a_statement(stage: Stage) -> None:
    """The server goes down while it works for somebody."""
    engine = stage.engine()
    await use(engine)
    task = asyncio.create_task(use(engine, stage.server.sleep))
    await stage.sleeping()
    with stage.outage():
        await ending(task)
        await ending(use(engine))
        assert {("shutdown", "in_use"): 1} == losses(stage)


@found_by
@pytest.mark.parametrize("way", ["reset", "finish"])
async def test_cut_by_the_network(stage: Stage, options: dict[str, Any], phase: str, way: str) -> None:
    """Something in between resets, or closes in order, as the server would after KILL; PostgreSQL would say why."""
    with Proxy(stage.server) as proxy:
        engine = stage.engine(port=proxy.port, **options)
        await stage.fill(engine, 1)
        getattr(proxy, way)()
        await stage.hear()
        await ending(use(engine))
        await use(engine)
        cause = "killed" if way == "finish" and stage.driver.mysql else "network"
        if phase == "pre_ping" and way == "reset" and str(stage.driver) == "aiomysql-uvloop":
            phase = "ping_failed"
        assert {(idle_end(stage.driver, cause), phase): 1} == losses(stage)


async def test_reset_in_a_statement(stage: Stage) -> None:
    """Something in between resets it while the server works."""
    with Proxy(stage.server) as proxy:
        engine = stage.engine(port=proxy.port)
        await use(engine)
        task = asyncio.create_task(use(engine, stage.server.sleep))
        await stage.sleeping()
        proxy.reset()
        await ending(task)
        await stage.wake()
        assert {("network", "in_use"): 1} == losses(stage)


@pytest.mark.parametrize("way", ["kill", "reset"])
async def test_found_on_return(stage: Stage, way: str) -> None:
    """The pool's own ROLLBACK meets it, and nobody is told."""
    with Proxy(stage.server) as proxy:
        engine = stage.engine(port=proxy.port)
        await stage.fill(engine, 2)
        raw = await engine.raw_connection()

        def execute() -> int:
            cursor = raw.cursor()
            cursor.execute(stage.server.own_id)
            row: Any = cursor.fetchone()
            cursor.close()
            return int(row[0])

        number = await greenlet_spawn(execute)
        if way == "kill":
            await stage.lose(number)
        else:
            proxy.reset()
            await stage.hear()
        await ending(greenlet_spawn(raw.close))
        cause = idle_end(stage.driver, "killed" if way == "kill" else "network")
        assert {(cause, "return"): 1} == losses(stage)


async def test_lost_at_the_first_checkout(stage: Stage) -> None:
    """The question for the limits meets it, as a ping would, and it is replaced."""
    deaths = iter([True])

    def kill_first(engine: AsyncEngine) -> None:
        @event.listens_for(engine.sync_engine, "checkout")
        def kill(dbapi: Any, _record: Any, _proxy: Any) -> None:
            if next(deaths, False):
                cursor = dbapi.cursor()
                cursor.execute(stage.server.own_id)
                (number,) = cursor.fetchone()
                cursor.close()
                dbapi.rollback()
                stage.server.kill(number)

    engine = stage.engine(kill_first)
    await use(engine)
    ((cause, phase),) = losses(stage)
    assert "pre_ping" == phase
    assert cause in {"killed", "unknown"}


@pytest.mark.only("aiomysql", "asyncmy")
async def test_refused_by_a_server_that_lives(stage: Stage) -> None:
    """An attempt to connect that the server answers, if only with a refusal, is no sign that it went down."""
    engine = stage.engine()
    await stage.lose(*await stage.fill(engine, 1))
    stage.server.lock_out(out=True)
    try:
        for _ in range(2):
            await ending(use(engine))
    finally:
        stage.server.lock_out(out=False)
    assert {("killed", "in_use"): 1} == losses(stage)


async def test_met_by_a_listener(stage: Stage) -> None:
    """A listener of the application's that meets it at checkout costs one caller, who is counted once."""

    def ask(engine: AsyncEngine) -> None:
        @event.listens_for(engine.sync_engine, "checkout")
        def ask(dbapi: Any, _record: Any, _proxy: Any) -> None:
            cursor = dbapi.cursor()
            cursor.execute("SELECT 1")
            cursor.close()
            dbapi.rollback()

    engine = stage.engine(ask)
    first, _ = await stage.fill(engine, 2)
    await stage.lose(first)
    await ending(use(engine))
    snapshot = stage.watches[0].snapshot()
    assert {"in_use": 1} == {phase: value for (_, phase), value in moved(snapshot.disconnects_total).items()}
    assert {} == moved(snapshot.checkout_failures_total)


async def test_no_disconnects(stage: Stage) -> None:
    """Neither a cancelled statement nor one that failed or was ended alone is a lost connection."""
    engine = stage.engine()
    await stage.fill(engine, 2)
    assert isinstance(await ending(use(engine, "SELECT nonsense")), exc.DBAPIError)
    for end in ("cancel", "kill"):
        task = asyncio.create_task(use(engine, stage.server.sleep))
        await stage.sleeping()
        if end == "cancel":
            task.cancel()
        else:
            stage.server.kill_statement(*stage.server.sleepers())
        await ending(task)
        await stage.wake()
        await until(lambda: not stage.server.sleepers(), "the end of what was cancelled")
    assert {} == losses(stage)


@pytest.mark.only("aiomysql-uvloop")
async def test_many_met_at_once(stage: Stage) -> None:
    """Where one loss does not condemn the others, each is booked when its own user meets it."""
    with Proxy(stage.server) as proxy:
        engine = stage.engine(port=proxy.port)
        await stage.fill(engine, 3)
        proxy.reset()
        await stage.hear()
        for _ in range(3):
            assert isinstance(await ending(use(engine)), RuntimeError)
        assert {("network", "in_use"): 3} == losses(stage)
