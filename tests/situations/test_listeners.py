"""Other people's listeners: where they listen, and that they raise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, event, exc

from stage import OLDEST, ending
from support import use

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from stage import Stage

pytestmark = pytest.mark.anyio


class Raiser:
    """A listener that raises *error* the next *times* it is called.

    Attributes:
        left: How often it still will.
    """

    def __init__(self, error: type[BaseException], times: int) -> None:
        self._error = error
        self.left = times

    def __call__(self, *_: Any) -> None:
        """Raise, or no longer."""
        if self.left:
            self.left -= 1
            raise self._error


def listener(engine: AsyncEngine, name: str, raiser: Raiser) -> Raiser:
    """Put *raiser* on *engine*, and return it."""
    event.listen(engine.sync_engine, name, raiser)
    return raiser


async def test_on_a_clone_and_on_the_class(stage: Stage) -> None:
    """Listeners elsewhere, put there before and after ours, and taken away, change nothing."""
    calls: list[object] = []

    def note(*arguments: object) -> None:
        calls.append(arguments)

    engine = stage.engine()
    clone = engine.execution_options(purpose="reports")
    event.listen(clone.sync_engine, "checkout", note)
    event.listen(Engine, "checkin", note)
    try:
        await use(engine)
        await engine.dispose()
        await use(clone)
    finally:
        event.remove(Engine, "checkin", note)
    await stage.check({"disposed": 1}, idle=1)
    assert 4 == len(calls)


async def test_connect_listener_that_raises(stage: Stage) -> None:
    """A connection that the application refuses while it is set up was established, and failed."""
    engine = stage.engine()
    listener(engine, "connect", Raiser(LookupError, 2))
    for _ in range(2):
        assert isinstance(await ending(use(engine)), LookupError)
    # The oldest SQLAlchemy does not close it.
    dropped = 2 if OLDEST else 0
    await stage.check({"failed": 2}, dropped=dropped, failures={"other": 2})
    await use(engine)
    await stage.check({"failed": 2}, idle=1, dropped=dropped, failures={"other": 2})


async def test_connect_listener_that_raises_on_a_reconnect(stage: Stage) -> None:
    """So did one that was to replace another, which is a reconnect all the same."""
    engine = stage.engine(pool_recycle=60)
    raiser = listener(engine, "connect", Raiser(LookupError, 0))
    await use(engine)
    stage.age()
    raiser.left = 1
    assert isinstance(await ending(use(engine)), LookupError)
    await stage.check({"recycle": 1, "failed": 1}, {"recycle": 1}, failures={"other": 1})


async def test_checkout_listener_that_refuses_once(stage: Stage) -> None:
    """A connection that the application refuses is replaced in the same checkout."""
    engine = stage.engine()
    await use(engine)
    listener(engine, "checkout", Raiser(exc.DisconnectionError, 1))
    await use(engine)
    await stage.check({"invalidated": 1}, {"invalidated": 1}, idle=1)
    assert 2 == stage.watches[0].snapshot().checkouts_total


async def test_checkout_listener_that_refuses_all(stage: Stage) -> None:
    """SQLAlchemy asks twice, opens a third connection, throws it away and gives up."""
    engine = stage.engine()
    await use(engine)
    raiser = listener(engine, "checkout", Raiser(exc.DisconnectionError, 99))
    assert isinstance(await ending(use(engine)), exc.InvalidRequestError)
    assert 97 == raiser.left
    await stage.check({"invalidated": 3}, {"invalidated": 2}, failures={"other": 1})


async def test_checkout_listener_that_condemns_all_once(stage: Stage) -> None:
    """An application that calls the whole pool lost has every other idle connection replaced too."""
    engine = stage.engine()
    await stage.fill(engine, 3)
    listener(engine, "checkout", Raiser(exc.InvalidatePoolError, 1))
    for _ in range(4):
        await use(engine)
    closes = {"invalidated": 1, "pool_invalidated": 2}
    await stage.check(closes, closes, idle=3)


async def test_checkout_listener_that_condemns_all_always(stage: Stage) -> None:
    """The same, when it never has enough."""
    engine = stage.engine()
    await stage.fill(engine, 2)
    raiser = listener(engine, "checkout", Raiser(exc.InvalidatePoolError, 99))
    assert isinstance(await ending(use(engine)), exc.InvalidRequestError)
    raiser.left = 0
    for _ in range(2):
        await use(engine)
    closes = {"invalidated": 3, "pool_invalidated": 1}
    await stage.check(closes, {"invalidated": 3, "pool_invalidated": 1}, idle=2, failures={"other": 1})


async def test_checkout_listener_that_fails(stage: Stage) -> None:
    """Any other exception costs the caller the connection."""
    engine = stage.engine()
    await use(engine)
    listener(engine, "checkout", Raiser(LookupError, 1))
    assert isinstance(await ending(use(engine)), LookupError)
    await stage.check({"invalidated": 1}, failures={"other": 1})


async def test_checkin_listener_that_fails(stage: Stage) -> None:
    """It takes the place in the pool with it: the connection is collected, the next caller waits in vain."""
    engine = stage.engine(pool_size=1, max_overflow=0, pool_timeout=0.01)
    await use(engine)
    listener(engine, "checkin", Raiser(LookupError, 1))
    assert isinstance(await ending(use(engine)), LookupError)
    assert isinstance(await ending(use(engine)), exc.TimeoutError)
    await stage.check({"other": 1}, dropped=1, failures={"timeout": 1})


async def test_reset_listener_that_fails(stage: Stage) -> None:
    """It costs the connection; nobody is told."""
    engine = stage.engine(pool_size=1, max_overflow=0)
    await use(engine)
    listener(engine, "reset", Raiser(LookupError, 1))
    await use(engine)
    await stage.check({"reset_failed": 1})
    await use(engine)
    await stage.check({"reset_failed": 1}, idle=1)


@pytest.mark.parametrize("name", ["close", "invalidate"])
async def test_closing_listener_that_fails(stage: Stage, name: str) -> None:
    """It keeps the connection open for a while; the oldest SQLAlchemy even hands it out again."""
    engine = stage.engine(pool_size=1, max_overflow=0)
    listener(engine, name, Raiser(LookupError, 1))
    connection = await engine.connect()
    await ending(connection.invalidate())
    await ending(connection.close())
    del connection
    await use(engine)
    if name == "invalidate" and OLDEST:
        await stage.check(idle=1)
    else:
        await stage.check({"invalidated": 1}, {"invalidated": 1}, idle=1)
