"""Connections that are being given back, or were with an answer half read, are not dead, nor in a transaction."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolwatch import watch
from poolwatch.drivers import driver_of
from support import fill, until, use

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolwatch.demo.servers import MariaDB

    MakeEngine = Callable[..., AsyncEngine]

pytestmark = pytest.mark.anyio


async def test_read_at_every_turn(
    make_engine: MakeEngine, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy puts an isolation level back when the pool already has the connection; an answer may lie there."""
    engine = make_engine(pool_size=1)
    driver = driver_of(engine.dialect)
    # As if each answer were an error.
    monkeypatch.setattr(type(driver), "is_dead", lambda self, connection: self.goodbye(connection) is not None)
    watched = watch(engine, registry=registry)
    await use(engine)
    over = asyncio.Event()
    seen: set[str] = set()

    async def read() -> None:
        while not over.is_set():
            seen.update(state for state, count in watched.snapshot().connections.items() if count)
            await asyncio.sleep(0)

    reading = asyncio.create_task(read())
    for _ in range(50):
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("SELECT 1"))
    over.set()
    await reading
    assert {"checked_out", "idle"} == seen


async def test_an_answer_half_read(mariadb: MariaDB, registry: CollectorRegistry) -> None:
    """Rows that nobody fetched are no goodbye."""
    engine = create_async_engine(mariadb.url(), isolation_level="AUTOCOMMIT", pool_reset_on_return=None)
    watched = watch(engine, registry=registry)
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        driver = raw.driver_connection
        assert driver is not None
        await driver.query("SELECT seq FROM seq_1_to_100000", unbuffered=True)
        await until(lambda: driver_of(engine.dialect).goodbye(driver) is not None, "rows")
    assert {"idle": 1} == {state: count for state, count in watched.snapshot().connections.items() if count}
    await engine.dispose()


async def test_two_phases(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A transaction that ends in a statement does not make the idle connection count as in one."""
    engine = make_engine(
        connect_args={"init_command": "SET SESSION wait_timeout = 10, idle_transaction_timeout = 1000"}
    )
    watched = watch(engine, registry=registry, per_connection=True)

    def work(connection: object) -> None:
        with connection.begin_twophase():  # type: ignore[attr-defined]
            connection.execute(text("SELECT 1"))  # type: ignore[attr-defined]

    async with engine.connect() as connection:
        await connection.run_sync(work)
    snapshot = watched.snapshot()
    active = snapshot.connection_last_activity_timestamp_seconds["0"]
    assert {"0": active + 10} == snapshot.connection_deadline_timestamp_seconds
    assert 1 == len(mariadb.connections())


async def test_failed_in_the_client(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A statement that the driver cannot even send is not heard; one that the server refuses is."""
    engine = make_engine(isolation_level="AUTOCOMMIT")
    watched = watch(engine, registry=registry)
    await fill(engine, 1)
    async with engine.connect() as connection:
        (slot,) = watched._ledger.slots.values()
        before = slot.active
        with pytest.raises(TypeError, match="not enough arguments"):
            await connection.exec_driver_sql("SELECT %s, %s", (1,))
        assert before == slot.active
        with pytest.raises(Exception, match="1064"):
            await connection.exec_driver_sql("NO SUCH STATEMENT")
        assert before is not None
        assert slot.active is not None
        assert before < slot.active


def test_unknown_drivers_send_nothing_for_certain() -> None:
    """Whether a ROLLBACK outside a transaction is sent is known of MySQL's drivers; elsewhere none is claimed."""
    assert driver_of(create_engine("mysql+pymysql://127.0.0.1:1/app").dialect).always_sends
    assert not driver_of(create_engine("sqlite://").dialect).always_sends
