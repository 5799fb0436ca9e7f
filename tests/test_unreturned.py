"""Connections that are still out when their request is over: counted once, told once in a while, never guessed."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine

from poolwatch import PoolWatchMiddleware, requests, unreturned, watch
from support import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from sqlalchemy import Connection

    from leaving import Stage

pytest_plugins = ["leaving"]
pytestmark = pytest.mark.anyio


async def test_left_out(stage: Stage) -> None:
    """It is counted once and told once, whether or not anybody reads; and once more when it comes back."""
    await stage.request(stage.take)
    await stage.judged()
    (line,) = stage.lines()
    assert "GET /shop/{page} is over and a connection of pool 'orders' is still out" in line
    for _ in range(2):
        assert (1, []) == (await stage.count(), stage.lines())
    assert {("GET", "/shop/{page}"): 1} == stage.watched.snapshot().route_unreturned_total
    await stage.give_back()
    for _ in range(2):
        assert 1 == await stage.count()
    (line,) = stage.lines()
    assert "GET /shop/{page} no longer holds the connection of pool 'orders'" in line


async def test_judged_by_a_reader(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader judges where no timer has: once, and not before a timer would have had twice its time."""
    monkeypatch.setattr(unreturned, "MOMENT", 60.0)
    await stage.request(stage.take)
    ledger = stage.watched._ledger
    (ending,) = ledger.endings
    for later, expected in ((0.0, 0), (119.9, 0), (120.1, 1), (121.0, 1)):
        monkeypatch.setattr(ledger, "clock", lambda now=ending[-1] + later: now)
        assert expected == stage.watched.snapshot().unreturned_total
    assert 1 == len(stage.lines())


async def test_told_by_the_next_request(stage: Stage) -> None:
    """Without a reader, the next request that uses the database tells who came back."""
    await stage.request(stage.take)
    await stage.judged()
    await stage.give_back()
    stage.lines()

    async def use() -> None:
        await stage.take()
        await stage.give_back()

    await stage.request(use)
    (line,) = stage.lines()
    assert "no longer holds" in line


async def test_rate_of_lines(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are counted; a route and pool that leave many out are told once in a while, with the number in between."""
    for number in (1, 2, 3):
        await stage.request(stage.take)
        assert number == await stage.count()
    assert 1 == len(stage.lines())
    monkeypatch.setattr(unreturned, "BETWEEN", 0.0)
    await stage.request(stage.take)
    assert 4 == await stage.count()
    (line,) = stage.lines()
    assert "(2 more since the last such line)" in line
    # The first and the last of them were told missing.
    while stage.held:
        await stage.give_back()
    assert 4 == await stage.count()
    assert 2 == len(stage.lines())


async def test_bounded_memory_of_lines(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was told when is kept of so many routes and no more."""
    monkeypatch.setattr(unreturned, "_MOST_LINES", 1)
    ledger = stage.watched._ledger
    ledger.lines["unreturned", ("GET", "/another")] = (ledger.clock(), 0)
    await stage.request(stage.take)
    assert 1 == await stage.count()
    assert [("unreturned", ("GET", "/shop/{page}"))] == list(ledger.lines)


async def test_given_back_a_moment_later(stage: Stage) -> None:
    """A task that gives it back at the end of the request, as SQLAlchemy's and asyncio's do, is given the time."""
    closing: list[asyncio.Task[None]] = []

    async def take_and_be_closed() -> None:
        await stage.take()
        closing.append(asyncio.create_task(stage.give_back()))

    await stage.request(take_and_be_closed)
    assert 1 == len(stage.watched._ledger.endings)
    await closing[0]
    await stage.judged()
    assert (0, []) == (await stage.count(), stage.lines())


def _within_the_moment(connection: Connection) -> None:
    asyncio.get_running_loop().call_later(unreturned.MOMENT / 2, connection.close)


def _in_a_busy_loop(connection: Connection) -> None:
    async def close() -> None:
        # As many turns of the loop as an answer of the server's takes to get there.
        for _ in range(3):
            await asyncio.sleep(0)
        connection.close()

    loop = asyncio.get_running_loop()
    # Another request that computes.
    loop.call_soon(time.sleep, 2 * unreturned.MOMENT)
    closing.append(loop.create_task(close()))


closing: list[asyncio.Task[None]] = []


@pytest.mark.parametrize("leave", [_within_the_moment, _in_a_busy_loop])
async def test_given_back_within_the_moment(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, leave: Callable[[Connection], None]
) -> None:
    """Nobody is accused who gives back before it is over, however little of it the event loop left to others."""
    monkeypatch.setattr(unreturned, "MOMENT", 0.03)
    engine = create_engine("sqlite://")
    watched = watch(engine, registry=registry)

    async def app(*_: Any) -> None:
        leave(engine.connect())

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await PoolWatchMiddleware(app, registry=registry)(scope, *(None, None))  # type: ignore[arg-type]
    assert 1 == len(watched._ledger.endings)
    await until(lambda: not watched._ledger.endings, "a judgement")
    snapshot = watched.snapshot()
    assert (0, 0) == (snapshot.unreturned_total, snapshot.connections["checked_out"])
    assert {("GET", "unmatched"): 1} == snapshot.route_checkouts_total


async def test_within_the_request(stage: Stage) -> None:
    """Background tasks are part of the request, and what is detached is no longer the pool's."""
    await stage.request(stage.take, background=stage.give_back)

    async def detach() -> None:
        await stage.take()
        (await stage.held[0].get_raw_connection()).detach()

    await stage.request(detach)
    assert (0, []) == (await stage.count(), stage.lines())


@pytest.mark.parametrize("after", [False, True])
async def test_a_task_that_goes_on(stage: Stage, *, after: bool) -> None:
    """What it took during the request is left out by it; what it takes afterwards is not."""
    over = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def go_on() -> None:
        if after:
            await over.wait()
        await stage.take()
        await over.wait()

    async def start() -> None:
        tasks.append(asyncio.create_task(go_on()))
        if not after:
            await until(lambda: bool(stage.held), "a task that holds a connection")

    await stage.request(start)
    over.set()
    await tasks[0]
    assert int(not after) == await stage.count()


@pytest.mark.parametrize("outside", [False, True])
async def test_another_hold(stage: Stage, *, outside: bool) -> None:
    """Who has the connection when the request is judged is not taken for who had it at its end."""
    over = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def exchange() -> None:
        await over.wait()
        await stage.give_back()
        await stage.take()

    async def start() -> None:
        await stage.take()
        tasks.append(asyncio.create_task(exchange()))

    await stage.request(start)
    (ending,) = stage.watched._ledger.endings
    if outside:
        await stage.give_back()
        await stage.take()
    else:
        over.set()
        await tasks[0]
    assert ending[1].held is not None
    assert 0 == await stage.count()
    tasks[0].cancel()


async def test_nothing_is_kept(stage: Stage) -> None:
    """A request that is over keeps neither its scope nor what it took, however that went."""
    accounts: list[Any] = []

    async def detach() -> None:
        await stage.take()
        (await stage.held[0].get_raw_connection()).detach()
        accounts.append(requests.current.get())
        assert {} == accounts[0].taken

    await stage.request(detach)
    assert (True, None, ("GET", "/shop/{page}")) == (accounts[0].ended, accounts[0].scope, accounts[0].owner)


async def test_a_cancelled_request(stage: Stage) -> None:
    """Cancellation passes, and what is still out after it is counted."""
    hanging = asyncio.create_task(stage.request(lambda: _forever(stage)))
    await until(lambda: bool(stage.held), "a request that hangs")
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert 1 == await stage.count()


async def _forever(stage: Stage) -> None:
    await stage.take()
    await asyncio.Event().wait()


async def test_a_failing_request(stage: Stage) -> None:
    """Its error passes, and what it gave back on its way out is not counted."""

    async def fail() -> None:
        async with stage.engine.connect():
            raise LookupError

    with pytest.raises(LookupError):
        await stage.request(fail)
    assert 0 == await stage.count()
