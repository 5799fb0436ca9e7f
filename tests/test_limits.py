"""Each session's own wait_timeout, and what happens when it cannot be had."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, exc

from poolwatch import server, watch
from support import assert_true_on, moved, run, until, use

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolwatch.demo.servers import MariaDB

    MakeEngine = Callable[..., AsyncEngine]

pytestmark = pytest.mark.anyio

ASKED = "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'Com_select'"


async def test_the_sessions_value(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """What counts is the session's limit, as the connection was set up, and the smallest of them is exported."""
    engine = make_engine(connect_args={"init_command": "SET SESSION wait_timeout = 77"})
    watched = watch(engine, registry=registry)
    seconds = iter([1234, 55])

    @event.listens_for(engine.sync_engine, "connect")
    def set_limit(dbapi: Any, _record: Any) -> None:
        for value in seconds:
            cursor = dbapi.cursor()
            cursor.execute(f"SET SESSION wait_timeout = {value}")
            cursor.close()
            break

    async with engine.connect(), engine.connect(), engine.connect():
        limits = sorted(slot.limits["wait_timeout"] for slot in watched._ledger.slots.values())
        assert [55.0, 77.0, 1234.0] == limits
        assert {"wait_timeout": 55.0} == watched.snapshot().inactivity_limit_seconds
    assert 200 == watched.snapshot().server_max_connections
    await assert_true_on(mariadb, watched)


async def test_asked_once(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A connection is asked at its first checkout, and never again."""
    engine = make_engine()
    watch(engine, registry=registry)
    async with engine.connect():
        pass
    (before,) = mariadb.query(ASKED)
    for _ in range(5):
        async with engine.connect():
            pass
    (after,) = mariadb.query(ASKED)
    # The question about the count is a SELECT itself.
    assert 1 == int(after[0]) - int(before[0])


async def test_leaves_no_transaction(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """The question opens no transaction that the application would find."""
    engine = make_engine()
    watch(engine, registry=registry)
    async with engine.connect() as connection:
        assert 0 == await run(connection, "SELECT @@in_transaction")


async def test_not_asked(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """With server_limits=False nothing is asked, and the operator's own limit rules."""
    engine = make_engine()
    watched = watch(engine, registry=registry, server_limits=False, inactivity_limit=350)
    await use(engine)
    snapshot = watched.snapshot()
    assert ({"configured": 350}, None) == (snapshot.inactivity_limit_seconds, snapshot.server_max_connections)
    assert 1 == snapshot.timeout_risk_connections["idle", "safe"]


async def test_unknown_without_any(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """Where no limit is known the risk is unknown and no deadline is set."""
    engine = make_engine()
    watched = watch(engine, registry=registry, server_limits=False)
    await use(engine)
    snapshot = watched.snapshot()
    assert {} == snapshot.inactivity_limit_seconds
    assert 1 == snapshot.timeout_risk_connections["idle", "unknown"]
    assert {float("inf")} == set(snapshot.next_deadline_timestamp_seconds.values())


async def test_the_smaller_limit_rules(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """The operator's limit and the server's are both exported; the deadline obeys the smaller."""
    engine = make_engine()
    watched = watch(engine, registry=registry, inactivity_limit=350, per_connection=True)
    await use(engine)
    snapshot = watched.snapshot()
    assert {"configured": 350, "wait_timeout": 28800.0} == snapshot.inactivity_limit_seconds
    active = snapshot.connection_last_activity_timestamp_seconds["0"]
    assert {"0": active + 350} == snapshot.connection_deadline_timestamp_seconds
    assert active + 350 == snapshot.next_deadline_timestamp_seconds["idle", "false"]


@pytest.mark.parametrize(("recycle", "protected"), [(99, "true"), (100, "false"), (-1, "false")])
async def test_recycling_protects_below_the_limit(
    make_engine: MakeEngine, registry: CollectorRegistry, recycle: int, protected: str
) -> None:
    """pool_recycle protects only if it is shorter than the limit."""
    engine = make_engine(pool_recycle=recycle)
    watched = watch(engine, registry=registry, inactivity_limit=100)
    await use(engine)
    deadlines = watched.snapshot().next_deadline_timestamp_seconds
    assert [("idle", protected)] == [key for key, moment in deadlines.items() if moment < float("inf")]


@pytest.mark.parametrize(
    ("anyio_backend", "protected"),
    [
        pytest.param(("asyncio", {"use_uvloop": False}), "true", id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), "false", id="uvloop"),
    ],
)
async def test_pre_ping_protects_where_it_works(
    make_engine: MakeEngine, registry: CollectorRegistry, protected: str
) -> None:
    """pool_pre_ping protects aiomysql's connections under asyncio, and under uvloop it does not."""
    engine = make_engine(pool_pre_ping=True)
    watched = watch(engine, registry=registry)
    await use(engine)
    deadlines = watched.snapshot().next_deadline_timestamp_seconds
    assert [("idle", protected)] == [key for key, moment in deadlines.items() if moment < float("inf")]


@pytest.mark.parametrize(
    "question", ["SELECT @@session.no_such_variable, 1", "SELECT 'soon', NULL", "SELECT 1", "SELECT 0, 0"]
)
async def test_refusals_and_nonsense(
    mariadb: MariaDB,
    make_engine: MakeEngine,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    question: str,
) -> None:
    """A server that refuses or answers nonsense costs nobody a connection; the limit is unknown."""
    monkeypatch.setattr(server, "_MYSQL_LIMITS", question)
    engine = make_engine()
    watched = watch(engine, registry=registry)
    assert 1 == await use(engine)
    assert {} == (await assert_true_on(mariadb, watched)).inactivity_limit_seconds


@pytest.mark.parametrize("times", [1, 2])
async def test_lost_while_asked(
    mariadb: MariaDB,
    make_engine: MakeEngine,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
) -> None:
    """A connection that is lost at that moment is replaced once; then the driver's own error comes out."""
    engine = make_engine()
    watched = watch(engine, registry=registry)
    deaths = iter(range(times))
    ask = server.ask_limits

    def die_first(dialect: Any, dbapi: Any) -> server.ServerLimits:
        if next(deaths, None) is not None:
            mariadb.kill(dbapi.driver_connection.thread_id())
        return ask(dialect, dbapi)

    monkeypatch.setattr(server, "ask_limits", die_first)
    if times == 1:
        assert 1 == await use(engine)
    else:
        with pytest.raises(exc.OperationalError, match="2013"):
            await use(engine)
    snapshot = await assert_true_on(mariadb, watched)
    assert {"disconnect": times} == moved(snapshot.closes_total)
    assert (1 if times == 1 else 0) == snapshot.checkouts_total
    # The next user is served either way, and by a second connection if the first is lost again, in the same place too.
    deaths = iter([0])
    if times == 1:
        await engine.dispose()
    assert 1 == await use(engine)
    await until(lambda: len(mariadb.connections()) == 1, "one connection")
