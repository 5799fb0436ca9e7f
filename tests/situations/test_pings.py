"""What pool_pre_ping costs, against a count of our own beneath."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from stage import ending
from support import moved, use

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from stage import Stage

pytestmark = [pytest.mark.anyio, pytest.mark.alike]

PRE_PING: dict[str, Any] = {"pool_pre_ping": True}


class Count:
    """Counts and times an engine's pings, by a ``do_ping`` of its own on the dialect.

    Attributes:
        pings: How many there were.
        seconds: What they took.
    """

    def __init__(self) -> None:
        self.pings = 0
        self.seconds = 0.0

    def __call__(self, engine: AsyncEngine) -> None:
        """Begin with *engine*."""
        ping: Callable[[Any], bool] = engine.dialect.do_ping

        def do_ping(dbapi: Any) -> bool:
            began = time.monotonic()
            self.pings += 1
            try:
                return ping(dbapi)
            finally:
                self.seconds += time.monotonic() - began

        engine.dialect.do_ping = do_ping  # type: ignore[method-assign,assignment]


async def test_counted(stage: Stage) -> None:
    """Every checkout but a connection's first sends one, and those that fail count too."""
    count = Count()
    engine = stage.engine(count, **PRE_PING)
    (watched,) = stage.watches
    (number,) = await stage.fill(engine, 1)
    assert 0 == watched.snapshot().pre_pings_total
    for _ in range(3):
        await use(engine)
    assert 3 == count.pings == watched.snapshot().pre_pings_total
    await stage.lose(number)
    await use(engine)
    snapshot = watched.snapshot()
    assert 4 == count.pings == snapshot.pre_pings_total
    assert count.seconds <= snapshot.pre_ping_seconds_total
    assert 1 == sum(moved(snapshot.disconnects_total).values())


async def test_none_without(stage: Stage) -> None:
    """A pool that does not ping counts none."""
    engine = stage.engine()
    for _ in range(3):
        await use(engine)
    snapshot = stage.watches[0].snapshot()
    assert (0, 0.0) == (snapshot.pre_pings_total, snapshot.pre_ping_seconds_total)


async def test_taken_off(stage: Stage) -> None:
    """A closed watch leaves the dialect as it was: somebody else's before us, or none but the class's."""
    plain = stage.engine(**PRE_PING)
    await use(plain)
    stage.watches[0].close()
    assert "do_ping" not in vars(plain.dialect)
    count = Count()
    other = stage.engine(count, **PRE_PING)
    await use(other)
    stage.watches[1].close()
    await use(other)
    assert 1 == count.pings


async def test_covered(stage: Stage) -> None:
    """What somebody puts over ours goes on, and through ours, also when the watch was closed."""
    engine = stage.engine(**PRE_PING)
    count = Count()
    count(engine)
    await use(engine)
    await use(engine)
    assert 1 == count.pings == stage.watches[0].snapshot().pre_pings_total
    stage.watches[0].close()
    await use(engine)
    assert 2 == count.pings


async def test_fails_otherwise(stage: Stage) -> None:
    """A ping that fails on a connection that lives is no lost connection: its caller gets none."""

    class OddError(Exception):
        """No driver's."""

    def fail(_dbapi: Any) -> bool:
        raise OddError

    def replace(engine: AsyncEngine) -> None:
        engine.dialect.do_ping = fail  # type: ignore[method-assign,assignment]

    engine = stage.engine(replace, **PRE_PING)
    await stage.fill(engine, 1)
    assert isinstance(await ending(use(engine)), OddError)
    snapshot = stage.watches[0].snapshot()
    assert {"other": 1} == moved(snapshot.checkout_failures_total)
    assert {} == moved(snapshot.disconnects_total)
    assert 1 == snapshot.pre_pings_total
