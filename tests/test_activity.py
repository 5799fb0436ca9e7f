"""Inactivity is what the server counts: our clock against the process list's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from poolwatch import watch
from support import fill, run, use

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from poolwatch.demo.servers import MariaDB

    MakeEngine = Callable[..., AsyncEngine]

pytestmark = pytest.mark.anyio

# The think time between two steps is what a wrong mark would be off by; half of it is the line between.
THINK = 0.15
SILENT = "SELECT TIME_MS / 1000 FROM information_schema.processlist WHERE user = 'app'"


async def think() -> None:
    """Let time pass between two steps."""
    await asyncio.sleep(THINK)


async def execute(connection: AsyncConnection) -> None:
    """Run a statement, think."""
    await run(connection, "SELECT 1")
    await think()


async def execute_and_commit(connection: AsyncConnection) -> None:
    """Run a statement, think, commit, think."""
    await execute(connection)
    await connection.commit()
    await think()


async def execute_and_roll_back(connection: AsyncConnection) -> None:
    """Run a statement, think, roll back, think."""
    await execute(connection)
    await connection.rollback()
    await think()


async def long_statement(connection: AsyncConnection) -> None:
    """Run a statement that takes a while; what counts is when it ended."""
    await run(connection, f"SELECT SLEEP({THINK})")


async def nothing(_connection: AsyncConnection) -> None:
    """Hold the connection without a statement."""
    await think()


STEPS = [execute, execute_and_commit, execute_and_roll_back, long_statement, nothing]


@pytest.fixture(
    params=[
        {},
        {"pool_reset_on_return": None},
        {"pool_pre_ping": True},
        {"isolation_level": "AUTOCOMMIT"},
        {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True},
    ],
    ids=str,
)
async def engine(request: pytest.FixtureRequest, make_engine: MakeEngine) -> AsyncEngine:
    """Return an engine of each way to give a connection back."""
    options: dict[str, Any] = request.param
    try:
        made = make_engine(**options)
    except TypeError as error:
        # Older SQLAlchemy does not know it, and sends the ROLLBACK.
        assert "skip_autocommit_rollback" in str(error)  # noqa: PT017
        made = make_engine(isolation_level="AUTOCOMMIT")
    return made


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
async def test_agrees_with_the_server(
    mariadb: MariaDB, engine: AsyncEngine, registry: CollectorRegistry, step: Callable[[AsyncConnection], Any]
) -> None:
    """Held and idle, the last activity we export is the server's own, whatever the last thing sent was."""
    watched = watch(engine, registry=registry, per_connection=True)
    await fill(engine, 1)
    await think()

    def difference() -> float:
        (silent,) = mariadb.query(SILENT)
        last = watched.snapshot().connection_last_activity_timestamp_seconds["0"]
        return watched._ledger.wall() - last - float(silent[0])

    async with engine.connect() as connection:
        await step(connection)
        held = difference()
    await think()
    assert -THINK / 2 < held < THINK / 2
    assert -THINK / 2 < difference() < THINK / 2


async def test_ping_is_activity(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A checkout with pre-ping is heard by the server, one without is not."""
    engine = make_engine(pool_pre_ping=True)
    watched = watch(engine, registry=registry, per_connection=True)
    await use(engine)
    before = watched.snapshot().connection_last_activity_timestamp_seconds["0"]
    async with engine.connect():
        assert before < watched.snapshot().connection_last_activity_timestamp_seconds["0"]
    plain = make_engine()
    watched = watch(plain, registry=registry, per_connection=True)
    await use(plain)
    before = watched.snapshot().connection_last_activity_timestamp_seconds["0"]
    async with plain.connect():
        assert before == watched.snapshot().connection_last_activity_timestamp_seconds["0"]
    assert 2 == len(mariadb.connections())
