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

pytestmark = [pytest.mark.anyio, pytest.mark.alike]


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


def raising(stage: Stage, name: str, raiser: Raiser, place: str, **options: Any) -> AsyncEngine:
    """Make an engine with *raiser* in a *place* seen from our watch: put there before or after it, or ahead of it."""

    def put(engine: AsyncEngine) -> None:
        event.listen(engine.sync_engine, name, raiser, insert=place == "ahead")

    engine = stage.engine(put if place == "before" else None, **options)
    if place != "before":
        put(engine)
    return engine


before_and_after = pytest.mark.parametrize("place", ["before", "after"])


async def test_on_a_clone_and_on_the_class(stage: Stage) -> None:
    """Listeners elsewhere, put there before and after ours, and taken away, change nothing."""
    calls: list[str] = []

    def early(*_: object) -> None:
        calls.append("early")

    def late(*_: object) -> None:
        calls.append("late")

    def listen(engine: AsyncEngine) -> None:
        event.listen(engine.execution_options(purpose="reports").sync_engine, "checkout", early)
        event.listen(Engine, "checkin", early)

    try:
        engine = stage.engine(listen)
        clone = engine.execution_options(purpose="reports")
        event.listen(clone.sync_engine, "checkout", late)
        event.listen(Engine, "checkin", late)
        other = stage.engine()
        await use(engine)
        await engine.dispose()
        await use(clone)
        await use(other)
    finally:
        for each in (early, late):
            event.remove(Engine, "checkin", each)
    await use(engine)
    await stage.check({"disposed": 1}, idle=2)
    # Three checkouts of the clone's pool, and three returns to both pools.
    assert 6 * ["early", "late"] == calls


@pytest.mark.parametrize(
    ("place", "closes", "failure"),
    [("before", {"failed": 2}, "other"), ("after", {"failed": 2}, "other"), ("ahead", {}, "connect")],
)
async def test_connect_listener_that_raises(stage: Stage, place: str, closes: dict[str, int], failure: str) -> None:
    """A connection that the application refuses while it is set up has failed; if we never heard of it, the attempt."""
    engine = raising(stage, "connect", Raiser(LookupError, 2), place)
    for _ in range(2):
        assert isinstance(await ending(use(engine)), LookupError)
    # The oldest SQLAlchemy does not close it.
    dropped = 2 if OLDEST else 0
    await stage.check(closes, dropped=dropped, failures={failure: 2})
    await use(engine)
    await stage.check(closes, idle=1, dropped=dropped, failures={failure: 2})


@pytest.mark.parametrize("place", ["before", "after", "ahead"])
async def test_connect_listener_that_raises_on_a_reconnect(stage: Stage, place: str) -> None:
    """So has one that was to replace another, a reconnect all the same; if we never heard of it, the next one is."""
    raiser = Raiser(LookupError, 0)
    engine = raising(stage, "connect", raiser, place, pool_recycle=60)
    await use(engine)
    stage.age()
    raiser.left = 1
    assert isinstance(await ending(use(engine)), LookupError)
    if place == "ahead":
        closes, failures = {"recycle": 1}, {"connect": 1}
        await stage.check(closes, failures=failures)
    else:
        closes, failures = {"recycle": 1, "failed": 1}, {"other": 1}
        await stage.check(closes, {"recycle": 1}, failures=failures)
    await use(engine)
    await stage.check(closes, {"recycle": 1}, idle=1, failures=failures)


@before_and_after
async def test_checkout_listener_that_refuses_once(stage: Stage, place: str) -> None:
    """A connection that the application refuses is replaced in the same checkout."""
    raiser = Raiser(exc.DisconnectionError, 0)
    engine = raising(stage, "checkout", raiser, place)
    await use(engine)
    raiser.left = 1
    await use(engine)
    await stage.check({"invalidated": 1}, {"invalidated": 1}, idle=1)
    assert 2 == stage.watches[0].snapshot().checkouts_total


@before_and_after
async def test_checkout_listener_that_refuses_all(stage: Stage, place: str) -> None:
    """SQLAlchemy asks twice, opens a third connection, throws it away and gives up."""
    raiser = Raiser(exc.DisconnectionError, 0)
    engine = raising(stage, "checkout", raiser, place)
    await use(engine)
    raiser.left = 99
    assert isinstance(await ending(use(engine)), exc.InvalidRequestError)
    assert 97 == raiser.left
    await stage.check({"invalidated": 3}, {"invalidated": 2}, failures={"other": 1})
    raiser.left = 0
    await use(engine)
    await stage.check({"invalidated": 3}, {"invalidated": 3}, idle=1, failures={"other": 1})


@before_and_after
async def test_checkout_listener_that_condemns_all_once(stage: Stage, place: str) -> None:
    """An application that calls the whole pool lost has every other idle connection replaced too."""
    raiser = Raiser(exc.InvalidatePoolError, 0)
    engine = raising(stage, "checkout", raiser, place)
    await stage.fill(engine, 3)
    raiser.left = 1
    for _ in range(4):
        await use(engine)
    closes = {"invalidated": 1, "pool_invalidated": 2}
    await stage.check(closes, closes, idle=3)


@before_and_after
async def test_checkout_listener_that_condemns_all_always(stage: Stage, place: str) -> None:
    """The same, when it never has enough."""
    raiser = Raiser(exc.InvalidatePoolError, 0)
    engine = raising(stage, "checkout", raiser, place)
    await stage.fill(engine, 2)
    raiser.left = 99
    assert isinstance(await ending(use(engine)), exc.InvalidRequestError)
    raiser.left = 0
    for _ in range(2):
        await use(engine)
    closes = {"invalidated": 3, "pool_invalidated": 1}
    await stage.check(closes, closes, idle=2, failures={"other": 1})


@before_and_after
async def test_checkout_listener_that_fails(stage: Stage, place: str) -> None:
    """Any other exception costs the caller the connection."""
    raiser = Raiser(LookupError, 0)
    engine = raising(stage, "checkout", raiser, place)
    await use(engine)
    raiser.left = 1
    assert isinstance(await ending(use(engine)), LookupError)
    await stage.check({"invalidated": 1}, failures={"other": 1})
    await use(engine)
    await stage.check({"invalidated": 1}, {"invalidated": 1}, idle=1, failures={"other": 1})


@before_and_after
async def test_checkin_listener_that_fails(stage: Stage, place: str) -> None:
    """It takes the place in the pool with it: the connection is collected, the next caller waits in vain."""
    raiser = Raiser(LookupError, 0)
    engine = raising(stage, "checkin", raiser, place, pool_size=1, max_overflow=0, pool_timeout=0.01)
    await use(engine)
    raiser.left = 1
    assert isinstance(await ending(use(engine)), LookupError)
    assert isinstance(await ending(use(engine)), exc.TimeoutError)
    await stage.check({"other": 1}, dropped=1, failures={"timeout": 1})


@before_and_after
async def test_reset_listener_that_fails(stage: Stage, place: str) -> None:
    """It costs the connection; nobody is told."""
    raiser = Raiser(LookupError, 0)
    engine = raising(stage, "reset", raiser, place, pool_size=1, max_overflow=0)
    await use(engine)
    raiser.left = 1
    await use(engine)
    await stage.check({"reset_failed": 1})
    await use(engine)
    await stage.check({"reset_failed": 1}, idle=1)


@pytest.mark.parametrize(
    ("name", "place", "reason"),
    [
        ("close", "before", "invalidated"),
        ("close", "after", "invalidated"),
        # SQLAlchemy closes it at its next checkout, as one that was invalidated softly.
        ("invalidate", "before", "soft_invalidated"),
        ("invalidate", "after", "invalidated"),
    ],
)
async def test_closing_listener_that_fails(stage: Stage, name: str, place: str, reason: str) -> None:
    """It keeps the connection open for a while; the oldest SQLAlchemy even hands it out again."""
    engine = raising(stage, name, Raiser(LookupError, 1), place, pool_size=1, max_overflow=0)
    connection = await engine.connect()
    assert isinstance(await ending(connection.invalidate()), LookupError)
    assert None is await ending(connection.close())
    del connection
    # Whether we have heard of the close that did not take place.
    heard = name == "close" and place == "after"
    if heard:
        await stage.check({reason: 1}, beside=1)
    else:
        await stage.check(idle=1)
    await use(engine)
    if OLDEST and not heard:
        await stage.check(idle=1)
        await engine.dispose()
        await stage.check({"disposed": 1})
    else:
        await stage.check({reason: 1}, {reason: 1}, idle=1)
