"""What is left out of a pool in odd circumstances: threads, no event loop, the garbage collector, our own errors."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Route

from asgi import Copying, client
from poolwatch import PoolWatchMiddleware, requests, unreturned, watch
from poolwatch.ledger import Ledger
from poolwatch.requests import OTHER, UNMATCHED
from poolwatch.slot import Slot
from support import use

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from starlette.types import Scope

    from leaving import Stage

pytest_plugins = ["leaving"]


@pytest.mark.anyio
async def test_given_back_by_a_thread_at_the_end(stage: Stage) -> None:
    """What a thread is giving back at the moment of the end is not out."""
    account = requests.Account(object(), requests.Terms(lambda _: ("GET", "/"), 1))
    await stage.take()
    await stage.give_back()
    (slot,) = stage.watched._ledger.slots.values()
    account.took(slot, stage.watched._ledger)
    unreturned.close(account)
    assert [] == stage.watched._ledger.endings


@pytest.mark.anyio
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


@pytest.mark.anyio
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


@pytest.mark.anyio
@pytest.mark.parametrize("broken", ["miss", "endings"])
async def test_an_error_of_our_own(stage: Stage, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """It never reaches a request or a reader."""

    class Broken(list[Any]):
        def append(self, _each: object) -> None:
            raise ZeroDivisionError

    ledger = stage.watched._ledger
    with monkeypatch.context() as patch:
        if broken == "miss":
            patch.setattr(ledger.usage, "miss", Broken().append)
        else:
            patch.setattr(ledger, "endings", Broken())
        assert 200 == (await stage.request(stage.take)).status_code
        await stage.judged()
    assert 1 == stage.watched.snapshot().internal_errors_total


def test_without_a_loop(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no event loop of asyncio's runs, who reads judges."""
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


def test_given_back_while_it_is_told(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said that a connection has come back that did so while the line was written that it had not."""
    monkeypatch.setattr(unreturned, "MOMENT", 0.0)
    engine = create_engine("sqlite://")
    watched = watch(engine, registry=registry)
    held: list[Any] = []
    lines: list[str] = []

    def write(line: str, *_: object) -> None:
        lines.append(line)
        while held:
            held.pop().close()

    async def app(*_: Any) -> None:
        held.append(engine.connect())

    monkeypatch.setattr(unreturned.logger, "warning", write)
    request: Any = PoolWatchMiddleware(app, registry=registry)(
        {"type": "http", "method": "GET", "path": "/", "headers": []},
        *(None, None),  # type: ignore[arg-type]
    )
    with pytest.raises(StopIteration):
        request.send(None)
    watched.snapshot()
    still_out, no_longer = lines
    assert "still out" in still_out
    assert "no longer holds" in no_longer


class Lost:
    """Gives the connection of *slot* back when it is collected, as one that nobody refers to any more."""

    def __init__(self, account: requests.Account, slot: Slot) -> None:
        self._me = self
        self._account, self._slot = account, slot

    def __del__(self) -> None:
        """Do what a listener does then."""
        self._slot.held = None
        self._account.gave_back(self._slot, 1.0)


@pytest.fixture
def _collector() -> Iterator[None]:
    """Leave the garbage collector as it was."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.enable()


@pytest.mark.usefixtures("_collector")
def test_collected_at_the_end() -> None:
    """What the garbage collector gives back while the rest is noted takes nobody else off the list."""
    ledger = Ledger(clock=time.monotonic, wall=time.time)
    account = requests.Account(object(), requests.Terms(lambda _: ("GET", "/"), 1))
    slots = [Slot(ledger, ledger) for _ in range(1000)]
    for slot in slots:
        slot.held = 1.0
        account.took(slot, ledger)
    lost = slots[-5:]
    gc.disable()
    # Forgets how many objects were made until now, and the freed tuples that Python keeps to use them again.
    gc.collect()
    gc.set_threshold(200)
    for slot in lost:
        Lost(account, slot)
    # It comes once some hundred objects have been made.
    gc.enable()
    unreturned.close(account)
    assert [None] * 5 == [slot.held for slot in lost]
    assert slots[:-5] == [slot for _, slot, _, _ in ledger.endings if slot not in lost]
    assert not ledger.read()[0]["internal_errors_total",]


class Once(Route):
    """A route that cannot be asked again once a request was routed; it counts who tries."""

    routed = False
    asked = 0

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the first time."""
        if self.routed:
            self.asked += 1
            raise LookupError
        return super().matches(scope)


@pytest.mark.anyio
async def test_a_route_that_cannot_be_asked(stage: Stage, registry: CollectorRegistry) -> None:
    """It is decided at the end of the request, counted as one error, and neither asked again nor kept."""
    accounts: list[Any] = []

    async def page(_request: Any) -> PlainTextResponse:
        accounts.append(requests.current.get())
        await use(stage.engine)
        route.routed = True
        return PlainTextResponse("done")

    route = Once("/", page)
    app = Starlette(routes=[route])
    app.add_middleware(Copying)
    app.add_middleware(PoolWatchMiddleware, registry=registry)
    async with client(app) as http:
        assert 200 == (await http.get("/")).status_code
    assert (None, (OTHER, UNMATCHED), 1) == (accounts[0].scope, accounts[0].owner, route.asked)
    for _ in range(2):
        snapshot = stage.watched.snapshot()
        assert (1, {(OTHER, UNMATCHED): 1}) == (snapshot.internal_errors_total, snapshot.route_checkouts_total)
    assert 1 == route.asked
