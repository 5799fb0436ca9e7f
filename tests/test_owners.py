"""Whose connection it is: on a real database, whatever a request does with its sessions, threads and tasks."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, exc
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asgi import Events, client
from poolwatch import PoolWatchMiddleware, watch
from poolwatch.requests import NOBODY, current
from poolwatch.traces import told
from shop import Shop
from support import assert_books, until, use

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolwatch import Watch
    from poolwatch.demo.servers import MariaDB

    MakeEngine = Callable[..., AsyncEngine]

pytestmark = pytest.mark.anyio

POOL_SIZE = 2


class Stage:
    """The shop with the middleware, and what its two pools say."""

    def __init__(self, shop: Shop, registry: CollectorRegistry) -> None:
        self.shop = shop
        self.watches: list[Watch] = [
            watch(engine, name=name, registry=registry)
            for name, engine in (("async", shop.engine), ("sync", shop.sync_engine))
        ]
        self.app: Any = PoolWatchMiddleware(shop.app, registry=registry, route_details=True, trace_checkouts=True)
        self.http = client(self.app)

    async def get(self, page: str, method: str = "GET") -> None:
        """Make a request of the tenant ``blue``."""
        assert 200 == (await self.http.request(method, f"/blue/{page}")).status_code

    def owners(self, pool: int = 0) -> dict[tuple[str, str], int]:
        """Return who checked out of a pool, after a look at all of its books."""
        snapshot = self.watches[pool].snapshot()
        assert_books(snapshot)
        assert set(snapshot.route_checkouts_total) == set(snapshot.route_hold_seconds_total)
        return dict(snapshot.route_checkouts_total)


@pytest.fixture
async def stage(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> AsyncIterator[Stage]:
    """Return the stage; at the end nobody is left in the context variable."""
    sync_engine = create_engine(mariadb.url().replace("aiomysql", "pymysql"))
    made = Stage(Shop(make_engine(pool_size=POOL_SIZE, max_overflow=0), sync_engine), registry)
    yield made
    made.shop.leaked.clear()
    await made.http.aclose()
    sync_engine.dispose()
    assert current.get() is None


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("page", ["async", "stream", "background"])
async def test_one_request(stage: Stage, page: str, *, around: bool) -> None:
    """What a request takes is its route's: while it runs, while it answers, and after that."""
    if around:
        stage.shop.app.add_middleware(BaseHTTPMiddleware, dispatch=_through)
    suffix, template = ("/5", "/{id}") if page == "async" else ("", "")
    for times in (1, 2):
        await stage.get(page + suffix)
        assert {("GET", f"/{{tenant}}/{page}{template}"): times} == stage.owners()


async def _through(request: Any, call_next: Any) -> Any:
    return await call_next(request)


async def test_threads(stage: Stage) -> None:
    """A sync endpoint runs in a thread, and its connections are its own."""
    await asyncio.gather(*(stage.get("sync") for _ in range(3)))
    assert ({}, {("GET", "/{tenant}/sync"): 3}) == (stage.owners(0), stage.owners(1))


async def test_several_sessions_and_pools(stage: Stage) -> None:
    """Each pool counts what was taken from it, by task or by thread."""
    await stage.get("several", "POST")
    assert [{("POST", "/{tenant}/several"): 2}] * 2 == [stage.owners(0), stage.owners(1)]


async def test_a_task_that_outlives_its_request(stage: Stage) -> None:
    """What it takes after the request is still the route's that started it; and is not unreturned."""
    await stage.get("child")
    assert {} == stage.owners()
    stage.shop.go_on.set()
    await stage.shop.tasks[0]
    assert {("GET", "/{tenant}/child"): 1} == stage.owners()
    assert 0 == stage.watches[0].snapshot().unreturned_total


async def test_outside_any_request(stage: Stage) -> None:
    """What is taken before, between and after requests is nobody's."""
    await use(stage.shop.engine)
    await stage.get("async/5")
    await use(stage.shop.engine)
    assert {NOBODY: 2, ("GET", "/{tenant}/async/{id}"): 1} == stage.owners()


async def test_requests_beside_each_other(stage: Stage) -> None:
    """Many requests at once do not mix up their connections."""
    pages = {"async/1": "/async/{id}", "stream": "/stream", "background": "/background"}
    await asyncio.gather(*(stage.get(page) for page in pages for _ in range(7)), *(use(stage.shop.engine),) * 1)
    expected = {("GET", f"/{{tenant}}{route}"): 7 for route in pages.values()}
    assert expected | {NOBODY: 1} == stage.owners()


async def test_while_a_request_hangs(stage: Stage) -> None:
    """Its seconds grow while it holds the connection, at the rate of one a second, and stay when it gives it back."""
    hanging = asyncio.create_task(stage.get("hang"))
    (watched, _), owner = stage.watches, ("GET", "/{tenant}/hang")
    await stage.shop.holding.wait()
    assert {owner: 1} == watched.snapshot().route_checkouts_total
    clock = watched._ledger.clock
    began = clock()
    before = watched.snapshot().route_hold_seconds_total[owner]
    await asyncio.sleep(0.1)
    grown = watched.snapshot().route_hold_seconds_total[owner] - before
    assert 0.099 <= grown <= clock() - began
    stage.shop.go_on.set()
    await hanging
    assert {owner: 1} == stage.owners()
    assert before + grown <= watched.snapshot().route_hold_seconds_total[owner]


async def test_details(stage: Stage) -> None:
    """Who holds the connections now, and who has waited for them."""
    (watched, _), clock = stage.watches, time.perf_counter
    hanging = [asyncio.create_task(stage.get("hang")) for _ in range(POOL_SIZE)]
    hang, plain = ("GET", "/{tenant}/hang"), ("GET", "/{tenant}/async/{id}")
    await until(lambda: {hang: POOL_SIZE} == watched.snapshot().route_connections, "requests that hang")
    began = clock()
    waiting = asyncio.create_task(stage.get("async/5"))
    await until(lambda: watched.snapshot().pending_checkouts == 1, "a request that waits")
    await asyncio.sleep(0.1)
    stage.shop.go_on.set()
    await asyncio.gather(*hanging, waiting)
    used, _ = clock(), await use(stage.shop.engine)
    ended = clock()
    assert {hang: POOL_SIZE, plain: 1, NOBODY: 1} == stage.owners()
    snapshot = watched.snapshot()
    assert {hang: 0, plain: 0, NOBODY: 0} == snapshot.route_connections == snapshot.route_unreturned_total
    waited = snapshot.route_checkout_seconds_total
    assert 0.1 <= waited[plain] <= ended - began
    assert 0 < waited[NOBODY] <= ended - used


async def test_a_route_that_gets_none(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """What it has waited until the pool refused it is told all the same."""
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=0.05)
    watched = watch(engine, registry=registry)

    async def page(_request: Any) -> PlainTextResponse:
        with pytest.raises(exc.TimeoutError):
            await engine.connect()
        return PlainTextResponse("none")

    app = Starlette(routes=[Route("/{id}", page)])
    app.add_middleware(PoolWatchMiddleware, registry=registry, route_details=True)
    async with engine.connect(), client(app) as http:
        assert 200 == (await http.get("/1")).status_code
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert snapshot.route_checkout_seconds_total["GET", "/{id}"] >= 0.05
    assert {NOBODY: 1, ("GET", "/{id}"): 0} == snapshot.route_checkouts_total


async def test_details_of_an_untimed_pool(stage: Stage, registry: CollectorRegistry) -> None:
    """Where callers who wait cannot be seen, the seconds of none are told."""
    pool: Any = stage.shop.sync_engine.pool
    stage.watches.pop().close()
    # On the instance it hides any class of ours.
    pool.connect = pool.connect
    watched = watch(stage.shop.sync_engine, name="untimed", registry=registry)
    await stage.get("sync")
    snapshot = watched.snapshot()
    assert {} == snapshot.route_checkout_seconds_total
    assert {("GET", "/{tenant}/sync"): 0} == snapshot.route_connections


async def test_before_it_is_routed(stage: Stage) -> None:
    """A connection that middleware holds is the route's that the request is on its way to, also when read then."""
    seen: list[dict[tuple[str, str], int]] = []

    async def dispatch(request: Any, call_next: Any) -> Any:
        async with stage.shop.engine.connect():
            seen.append(dict(stage.watches[0].snapshot().route_checkouts_total))
            return await call_next(request)

    stage.shop.app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    await stage.get("nothing")
    await stage.http.get("/secret/4711")
    nothing = {("GET", "/{tenant}/nothing"): 1}
    assert [nothing, nothing | {("GET", "unmatched"): 1}] == seen
    assert seen[1] == stage.owners()


async def test_a_websocket(stage: Stage) -> None:
    """It has a method of its own."""
    server = Events({"type": "websocket.connect"})
    scope = {"type": "websocket", "path": "/blue/talk", "headers": [], "query_string": b"", "subprotocols": []}
    await stage.app(scope, server.receive, server.send)
    assert {("WEBSOCKET", "/{tenant}/talk"): 1} == stage.owners()


@pytest.mark.filterwarnings("ignore:.*garbage collector is trying to clean up.*")
async def test_a_leak_that_another_request_finds(stage: Stage) -> None:
    """A connection that is collected while another request runs is charged to the one that took it."""
    await stage.get("leak")
    await asyncio.sleep(0.2)
    await stage.get("collect")
    snapshot = stage.watches[0].snapshot()
    assert {("GET", "/{tenant}/leak"): 1, ("GET", "/{tenant}/collect"): 1} == stage.owners()
    assert 1 == snapshot.leaks_total
    assert snapshot.route_hold_seconds_total["GET", "/{tenant}/leak"] >= 0.2


async def test_a_late_watch(stage: Stage, registry: CollectorRegistry) -> None:
    """What was out before we listened is nobody's; what was being waited for then is its request's, whoever reads."""
    engine = stage.shop.engine
    stage.watches.pop(0).close()
    held = [await engine.connect() for _ in range(POOL_SIZE)]
    hanging = asyncio.create_task(stage.get("hang"))
    pool: Any = engine.sync_engine.pool
    await until(lambda: bool(pool._pool._queue._getters), "a caller who waits")
    stage.watches.insert(0, watch(engine, name="again", registry=registry))
    assert {NOBODY: 2} == stage.owners()
    for each in held:
        await each.close()
    await stage.shop.holding.wait()
    owner = ("GET", "/{tenant}/hang")
    assert {NOBODY: 2, owner: 1} == stage.owners()
    (trace,) = [each.trace for each in stage.watches[0]._ledger.slots.values() if each.held is not None]
    assert told(trace).startswith("Shop.hang (")
    stage.shop.go_on.set()
    await hanging
    assert {NOBODY: 2, owner: 1} == stage.owners()


async def test_cap(stage: Stage, registry: CollectorRegistry) -> None:
    """max_routes bounds what each pool tells apart."""
    stage.http = client(PoolWatchMiddleware(stage.shop.app, registry=registry, max_routes=1))
    for page in ("async/5", "stream", "background", "async/6", "sync"):
        await stage.get(page)
    assert {("GET", "/{tenant}/async/{id}"): 2, ("GET", "other"): 2} == stage.owners(0)
    assert {("GET", "/{tenant}/sync"): 1} == stage.owners(1)
