"""The guard: connections that are dead or about to be are replaced in the checkout that would have handed them out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, exc

from poolwatch.demo.servers import poll
from stage import Interruptible, ending
from support import moved, quiet, until, use

if TYPE_CHECKING:
    from poolwatch import Watch
    from stage import Stage

pytestmark = pytest.mark.anyio

LIMIT = 100.0
DEAD, DUE = {"guard_dead": 1}, {"guard_deadline": 1}


@pytest.mark.parametrize("options", [{}, {"pool_pre_ping": True}])
async def test_dead(stage: Stage, options: dict[str, Any]) -> None:
    """A dead one is replaced before anything is sent on it, a ping too, and the others are left as they are."""
    engine, watched = stage.guarded(**options)
    first, _ = await stage.fill(engine, 2)
    await stage.lose(first)
    assert {"idle": 1, "dead": 1} == moved(watched.snapshot().connections)
    assert {"safe": 1, "protected": 1} == moved(_by_risk(watched))
    assert 1 == await use(engine)
    assert 0 == watched.snapshot().pre_pings_total
    await stage.check(DEAD, DEAD, idle=2)
    await use(engine)
    await stage.check(DEAD, DEAD, idle=2)
    snapshot = watched.snapshot()
    assert {("killed", "guard"): 1} == _known(snapshot.disconnects_total)
    assert {} == moved(snapshot.invalidations_total)
    assert "true" == snapshot.info["guard"]


def _by_risk(watched: Watch) -> dict[str, int]:
    return {risk: count for (_, risk), count in watched.snapshot().timeout_risk_connections.items() if count}


def _known(counts: Any) -> dict[Any, int]:
    # asyncpg may have dropped the server's last word.
    return {("killed" if cause == "unknown" else cause, phase): n for (cause, phase), n in moved(counts).items()}


async def test_opened_by_this_checkout(stage: Stage) -> None:
    """However short the limit, a checkout connects once at the most."""
    engine, _ = stage.guarded(1e-9)
    for _ in range(3):
        await use(engine)
    await stage.check({"guard_deadline": 2}, {"guard_deadline": 2}, idle=1)


async def test_lost_while_it_was_opened(stage: Stage) -> None:
    """One that this checkout has opened is handed out, dead or not."""
    engine, watched = stage.guarded()

    @event.listens_for(engine.sync_engine, "connect")
    def lose(_dbapi: Any, _record: Any) -> None:
        for each in stage.server.connections():
            stage.server.kill(each)

    assert isinstance(await ending(use(engine)), Exception)
    assert {} == {key: n for key, n in moved(watched.snapshot().closes_total).items() if key.startswith("guard")}
    assert watched.snapshot().connects_total <= 2


@pytest.mark.parametrize("first", [True, False])
async def test_refused_by_another_listener(stage: Stage, *, first: bool) -> None:
    """A listener that refuses what it is offered first still gets another to look at, and the caller no error."""
    engine, _ = stage.guarded()
    (number,) = await stage.fill(engine, 1)
    refused: list[object] = []

    def refuse(dbapi: object, _record: Any, _proxy: Any) -> None:
        if not refused:
            refused.append(dbapi)
            raise exc.DisconnectionError

    event.listen(engine.sync_engine, "checkout", refuse, insert=first)
    await stage.lose(number)
    await use(engine)
    # It was not the dead one that it was offered.
    await stage.check(DEAD | {"invalidated": 1}, DEAD | {"invalidated": 1}, idle=1)


async def test_a_server_that_stays_down(stage: Stage) -> None:
    """The caller gets the driver's own error, and the place in the pool is not lost."""
    engine, watched = stage.guarded(pool_size=1, max_overflow=0)
    await use(engine)
    with stage.outage():
        for _ in range(2):
            error = await ending(use(engine))
            assert isinstance(error, (exc.OperationalError, OSError)), repr(error)
        assert 1 == watched.snapshot().connects_total
    await use(engine)
    await stage.check(DEAD, DEAD, idle=1, failures={"connect": 2})
    assert {("shutdown", "guard"): 1} == moved(watched.snapshot().disconnects_total)


async def test_condemned_and_dead(stage: Stage) -> None:
    """One that the checkout would replace anyway keeps its reason."""
    engine, watched = stage.guarded(pool_recycle=60)
    (number,) = await stage.fill(engine, 1)
    await stage.lose(number)
    stage.age()
    await use(engine)
    await stage.check({"recycle": 1}, {"recycle": 1}, idle=1)
    assert {} == moved(watched.snapshot().disconnects_total)


async def test_a_clock_that_was_set_back(stage: Stage) -> None:
    """SQLAlchemy compares moments of the wall clock; one established in the future is replaced all the same, once."""
    engine, _ = stage.guarded()
    (number,) = await stage.fill(engine, 1)
    await stage.lose(number)
    stage.age(-3600)
    for _ in range(2):
        await use(engine)
    await stage.check(DEAD, DEAD, idle=1)


@pytest.mark.never("psycopg")
@pytest.mark.parametrize("dies", [True, False])
async def test_nothing_left_to_wait_for(stage: Stage, *, dies: bool) -> None:
    """When SQLAlchemy comes to close it, its transport has ended: nobody waits for a peer that may never answer."""
    engine, watched = stage.guarded(LIMIT)
    (number,) = await stage.fill(engine, 1)
    ended: list[bool | None] = []

    terminate = engine.dialect.do_terminate

    def look(dbapi: Any) -> None:
        ended.append(_has_ended(engine.dialect.get_driver_connection(dbapi)))
        terminate(dbapi)

    engine.dialect.do_terminate = look  # type: ignore[method-assign,assignment]
    if dies:
        stage.server.kill(number)
        # The kernel knows, and the event loop, which stands still, does not.
        assert poll(lambda: watched.snapshot().connections["dead"] == 1)
    else:
        quiet(watched, LIMIT)
    await use(engine)
    assert [True] == ended


def _has_ended(connection: Any) -> bool:
    if hasattr(connection, "is_closed"):
        return bool(connection.is_closed())
    return getattr(connection, "_transport", None) is None and getattr(connection, "_writer", None) is None


@pytest.mark.only("aiomysql", "asyncmy")
async def test_a_polite_end(stage: Stage) -> None:
    """One that lives is closed in order: the server counts no aborted client."""

    def aborted() -> int:
        ((_, value),) = stage.server.query("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")
        return int(value)

    engine, watched = stage.guarded(LIMIT)
    await use(engine)
    before = aborted()
    quiet(watched, LIMIT)
    await use(engine)
    await stage.check(DUE, DUE, idle=1)
    assert before == aborted()


@pytest.mark.only("asyncpg")
async def test_a_path_that_is_silent(stage: Stage) -> None:
    """A server that does not answer any more is not waited for, in order to say goodbye, before another is dialled."""
    engine, watched = stage.guarded(LIMIT)
    await use(engine)
    quiet(watched, LIMIT)
    dialled: list[float] = []
    event.listen(engine.sync_engine, "do_connect", lambda *_: dialled.append(time.monotonic()))
    stage.freeze()
    caller = Interruptible("cancel", use(engine))
    began = time.monotonic()
    await until(lambda: bool(dialled), "another attempt to connect")
    stage.thaw()
    assert "" == await caller.ended()
    assert dialled[0] - began < 1
    await stage.check(DUE, DUE, idle=1)


async def test_a_last_use(stage: Stage) -> None:
    """A connection that lives still works when listeners to its close are called."""
    engine, watched = stage.guarded(LIMIT, pool_size=1, max_overflow=0)
    await use(engine)
    quiet(watched, LIMIT)
    said: list[object] = []

    def ask(dbapi: Any, _record: Any) -> None:
        cursor = dbapi.cursor()
        cursor.execute("SELECT 1")
        said.append(cursor.fetchone()[0])
        cursor.close()

    event.listen(engine.sync_engine, "close", ask)
    await use(engine)
    event.remove(engine.sync_engine, "close", ask)
    assert [1] == said
    await stage.check(DUE, DUE, idle=1)


async def test_closed(stage: Stage) -> None:
    """When the watch is closed, nothing is replaced any more, and the pool has its class back."""
    engine, watched = stage.guarded(1e-9)
    await use(engine)
    number = await use(engine, stage.server.own_id)
    watched.close()
    assert number == await use(engine, stage.server.own_id)
