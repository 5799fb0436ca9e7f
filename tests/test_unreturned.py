"""Connections that are still out when their request is over: counted once, told once in a while, never guessed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asgi import client
from leaving import Stage
from poolwatch import PoolWatchMiddleware, requests, unreturned, watch
from poolwatch.ledger import Ledger
from support import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncEngine

    MakeEngine = Callable[..., AsyncEngine]
    Work = Callable[[], Awaitable[object]]

pytestmark = pytest.mark.anyio


@pytest.fixture
async def stage(
    make_engine: MakeEngine,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Return the stage; nothing was logged before."""
    monkeypatch.setattr(unreturned, "_lines", {})
    monkeypatch.setattr(unreturned, "MOMENT", 0.03)
    made = Stage(make_engine(), registry, caplog)
    yield made
    while made.held:
        await made.give_back()
    assert not made.watched._ledger.endings
    requests.late.clear()


async def test_left_out(stage: Stage) -> None:
    """It is counted once and told once, whether or not anybody reads; and once more when it comes back."""
    await stage.request(stage.take)
    await stage.judged()
    (line,) = stage.lines()
    assert "GET /shop/{page} is over and a connection of pool 'orders' is still out" in line
    for _ in range(2):
        assert (1, []) == (await stage.count(), stage.lines())
    await stage.give_back()
    for _ in range(2):
        assert 1 == await stage.count()
    (line,) = stage.lines()
    assert "GET /shop/{page} no longer holds the connection of pool 'orders'" in line


async def test_judged_by_a_reader(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader judges where no timer has, and not too soon."""
    monkeypatch.setattr(unreturned, "MOMENT", 60.0)
    await stage.request(stage.take)
    assert 0 == stage.watched.snapshot().unreturned_total
    monkeypatch.setattr(unreturned, "MOMENT", 0.0)
    for _ in range(2):
        assert 1 == stage.watched.snapshot().unreturned_total
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
    unreturned._lines["orders", ("GET", "/another")] = (stage.watched._ledger.clock(), 0)
    await stage.request(stage.take)
    assert 1 == await stage.count()
    assert [("orders", ("GET", "/shop/{page}"))] == list(unreturned._lines)


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


async def test_given_back_by_a_thread_at_the_end(stage: Stage) -> None:
    """What a thread is giving back at the moment of the end is not out."""
    account = requests.Account(object(), lambda _: ("GET", "/"), 1)
    await stage.take()
    await stage.give_back()
    (slot,) = stage.watched._ledger.slots.values()
    account.took(slot, stage.watched._ledger)
    unreturned.close(account)
    assert [] == stage.watched._ledger.endings


async def test_what_is_around_gives_back(stage: Stage) -> None:
    """Of two middlewares of ours the outer one knows the end: what is between them may give back until then."""

    async def page(_request: Any) -> PlainTextResponse:
        await stage.take()
        return PlainTextResponse("done")

    inner: Any = PoolWatchMiddleware(Starlette(routes=[Route("/", page)]))

    async def between(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)
        await asyncio.sleep(2 * unreturned.MOMENT)
        await stage.give_back()

    async with client(PoolWatchMiddleware(between)) as http:
        assert 200 == (await http.get("/")).status_code
    assert 0 == await stage.count()
    assert {("GET", "/"): 1} == stage.watched.snapshot().route_checkouts_total


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


async def test_a_watch_that_was_closed(stage: Stage, registry: CollectorRegistry) -> None:
    """What came back when nobody listened any more is not out."""

    async def take_and_stop() -> None:
        await stage.take()
        stage.watched.close()
        await stage.give_back()

    await stage.request(take_and_stop)
    await stage.judged()
    assert [] == stage.lines()
    assert 0 == watch(stage.engine, registry=registry).snapshot().unreturned_total


@pytest.mark.parametrize("broken", ["count", "endings"])
async def test_an_error_of_our_own(stage: Stage, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """It never reaches a request or a reader."""

    class Broken(list[Any]):
        def append(self, _each: object) -> None:
            raise ZeroDivisionError

    def count(counted: Ledger, *event: str) -> None:
        if event == ("unreturned_total",):
            raise ZeroDivisionError
        counted._note(event)

    with monkeypatch.context() as patch:
        if broken == "count":
            patch.setattr(Ledger, "count", count)
        else:
            patch.setattr(stage.watched._ledger, "endings", Broken())
        assert 200 == (await stage.request(stage.take)).status_code
        await stage.judged()
    assert 1 == stage.watched.snapshot().internal_errors_total


def test_without_a_loop(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no event loop of asyncio's runs, who reads judges."""
    monkeypatch.setattr(unreturned, "_lines", {})
    monkeypatch.setattr(unreturned, "MOMENT", 0.0)
    engine, held = create_engine("sqlite://"), []
    watched = watch(engine, registry=registry)

    async def app(*_: Any) -> None:
        held.append(engine.connect())

    request: Any = PoolWatchMiddleware(app, registry=registry)(
        {"type": "http", "method": "GET", "path": "/", "headers": []},
        *(None, None),  # type: ignore[arg-type]
    )
    with pytest.raises(StopIteration):
        request.send(None)
    assert 1 == watched.snapshot().unreturned_total
    assert {("GET", "unmatched"): 1} == watched.snapshot().route_checkouts_total
    assert 0 == watched.snapshot().internal_errors_total
    held.pop().close()
