"""A driver whose private names have gone, as after an upgrade, costs nobody a request or a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine

from poolwatch import watch
from poolwatch.drivers import driver_of
from poolwatch.ledger import Ledger
from poolwatch.losses import Losses
from poolwatch.slot import Slot
from stage import ending
from support import fill, moved, run, until, use

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolwatch.demo.servers import MariaDB

    MakeEngine = Callable[..., AsyncEngine]

QUESTIONS = ["is_lost", "is_dead", "goodbye", "was_reset", "in_transaction", "fileno"]


@pytest.mark.anyio
@pytest.mark.parametrize("pre_ping", [False, True])
@pytest.mark.parametrize("question", QUESTIONS)
async def test_gone(
    mariadb: MariaDB,
    make_engine: MakeEngine,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    question: str,
    *,
    pre_ping: bool,
) -> None:
    """Statements, returns, a loss and its replacement go as they would without us; the pool is still read."""
    engine = make_engine(pool_pre_ping=pre_ping)

    def fail(*_: Any) -> None:
        raise AttributeError(question)

    monkeypatch.setattr(type(driver_of(engine.dialect)), question, fail)
    watched = watch(engine, registry=registry)
    first, _ = await fill(engine, 2)
    async with engine.connect() as connection:
        await run(connection, "SELECT 1")
        await connection.commit()
    assert 2 == len(mariadb.connections())
    snapshot = watched.snapshot()
    assert 2 == sum(snapshot.connections.values()) == snapshot.connects_total
    mariadb.kill(first)
    for _ in range(2):
        await ending(use(engine))
    assert 1 == await use(engine)
    await until(lambda: len(mariadb.connections()) == 2 - (not pre_ping), "the connections that are left")
    snapshot = watched.snapshot()
    assert 1 == sum(snapshot.closes_total[reason] for reason in ("disconnect", "pre_ping"))
    assert 0 == snapshot.connections["checked_out"]


def test_shorter_than_survived() -> None:
    """A loss after less than others have survived leaves what is known of the path's limit as it is."""
    ledger = Ledger(clock=lambda: 1.0, wall=lambda: 1.0)
    losses = Losses(ledger, create_engine("sqlite://").dialect)
    ledger.survived = 100.0
    for silence in (350.0, 5.0, 351.0):
        losses.found(Slot(ledger, ledger), "in_use", None, silence=silence)
    losses.settle()
    assert 350.0 == ledger.deadly()


def test_losses_that_nobody_reads() -> None:
    """Those that wait for what follows are bounded: the oldest wait, the newest are booked at once."""
    ledger = Ledger(clock=lambda: 1.0, wall=lambda: 1.0)
    losses = Losses(ledger, create_engine("sqlite://").dialect)
    for _ in range(600):
        losses.found(Slot(ledger, ledger), "in_use", None, silence=None)
    assert {("disconnects_total", "unknown", "in_use"): 100} == moved(dict(ledger.read()[0]))
    losses.settle()
    assert {("disconnects_total", "unknown", "in_use"): 600} == moved(dict(ledger.read()[0]))
