"""Connections that the garbage collector finds: whose they were is told by whoever may log next."""

from __future__ import annotations

import gc
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine

from poolwatch import unreturned, watch
from support import assert_books

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from leaving import Stage

pytest_plugins = ["leaving"]
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:.*garbage collector is trying to clean up.*")]
LOST = "GET /shop/{page} lost a connection of pool 'orders' without giving it back"


def lose(stage: Stage) -> None:
    """Have the garbage collector find what is held."""
    stage.held.clear()
    gc.collect()


async def test_in_its_request(stage: Stage) -> None:
    """It was not out any more when the request was over; nobody logs in the collector, but the end of the request."""
    stage.traces = True

    async def forget() -> None:
        await stage.take()
        lose(stage)
        assert [] == stage.lines()

    await stage.request(forget)
    (line,) = stage.lines()
    assert LOST in line
    assert "since a checkout in Stage.take (" in line
    assert 0 == await stage.count()
    assert 1 == stage.watched.snapshot().leaks_total
    assert [] == stage.lines()


@pytest.mark.parametrize("judged", [False, True])
async def test_after_its_request(stage: Stage, monkeypatch: pytest.MonkeyPatch, *, judged: bool) -> None:
    """It was not given back in the moment that there is for that, and is counted once, whoever comes first."""
    if not judged:
        monkeypatch.setattr(unreturned, "MOMENT", 60.0)
    await stage.request(stage.take)
    if judged:
        await stage.judged()
        assert 1 == len(stage.lines())
    lose(stage)
    assert [] == stage.lines()
    assert (1, 1) == (await stage.count(), stage.watched.snapshot().leaks_total)
    assert {("GET", "/shop/{page}"): 1} == stage.watched.snapshot().route_unreturned_total
    lines = stage.lines()
    assert 1 + judged == len(lines)
    assert LOST in lines[-1]


async def test_rate_of_lines(stage: Stage) -> None:
    """They have lines of their own, once in a while."""
    for _ in range(3):
        await stage.request(stage.take)
        lose(stage)
    assert 3 == await stage.count()
    (line,) = stage.lines()
    assert LOST in line
    stage.watched._ledger.lines["leaked", ("GET", "/shop/{page}")] = (-unreturned.BETWEEN, 2)
    await stage.request(stage.take)
    lose(stage)
    assert 4 == await stage.count()
    (line,) = stage.lines()
    assert line.endswith("close it, or use a with block (2 more since the last such line)")


async def test_told_by_another_thread(stage: Stage) -> None:
    """Of two that are about to tell the same, one finds nothing left, which is no error."""

    class Contested(deque[Any]):
        def popleft(self) -> Any:
            if len(self) == 1:
                self.clear()
            return super().popleft()

    ledger = stage.watched._ledger
    ledger.leaked, ledger.late = (Contested([None]) for _ in range(2))
    assert 0 == stage.watched.snapshot().internal_errors_total
    assert [] == stage.lines()


async def test_outside_any_request(stage: Stage) -> None:
    """There is no route to be named."""
    await stage.take()
    lose(stage)
    assert (1, []) == (stage.watched.snapshot().leaks_total, stage.lines())


async def test_on_a_sync_engine(stage: Stage, registry: CollectorRegistry) -> None:
    """There it goes back to the pool, and its route is told all the same."""
    engine = create_engine("sqlite://")
    watched = watch(engine, name="orders of a thread", registry=registry)
    held: list[Any] = []

    async def work() -> None:
        held.append(engine.connect())

    await stage.request(work)
    held.clear()
    gc.collect()
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert (1, 1) == (snapshot.leaks_total, snapshot.unreturned_total)
    (line,) = stage.lines()
    assert "GET /shop/{page} lost a connection of pool 'orders of a thread'" in line
