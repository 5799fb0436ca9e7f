"""Whose connection it is in FastAPI, oldest and newest: dependencies, threads, streams, tasks; and it comes back."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine

from fastapi_shop import SCOPES, YIELDING, Shop
from fastapi_stage import Stage
from poolwatch import unreturned, watch
from poolwatch.requests import current
from support import assert_books, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolwatch.demo.servers import MariaDB

    MakeEngine = Callable[..., AsyncEngine]

pytestmark = pytest.mark.anyio


class Counter(Stage):
    """The shop's counter.

    Attributes:
        shop: The shop.
        left: How many connections requests are known to have left out.
    """

    def __init__(self, shop: Shop, registry: CollectorRegistry) -> None:
        super().__init__(shop.app, shop.engine, registry)
        self.shop = shop
        self.left = 0
        self.watched_sync = watch(shop.sync_engine, registry=registry)

    async def get(self, page: str, status: int = 200) -> str:
        """Ask for a page; return what is said."""
        answer = await self.ask("GET", f"/blue/shop/{page}")
        assert status == answer.status_code
        return answer.text

    def users(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return who ever checked out of either pool: the last parts of their routes."""
        snapshots = self.snapshot(), self.watched_sync.snapshot()
        assert_books(snapshots[1])
        prefix = "/{tenant}/shop/"
        one, other = (
            {route.removeprefix(prefix): count for (_, route), count in each.route_checkouts_total.items()}
            for each in snapshots
        )
        return one, other

    def judge(self) -> None:
        """Judge every request that is over, as a timer does a moment later."""
        for each in (self.watched, self.watched_sync):
            for ending in each._ledger.endings[:]:
                unreturned._judge(each._ledger, ending)

    def out(self) -> int:
        """Return how many connections are out."""
        return sum(each.snapshot().connections["checked_out"] for each in (self.watched, self.watched_sync))


@pytest.fixture
async def counter(
    mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Counter]:
    """Return the counter; in the end all was given back, nobody else was accused, nobody is in the context variable."""
    # Not by a timer, but when a test or the end says so.
    monkeypatch.setattr(unreturned, "MOMENT", 600.0)
    sync_engine = create_engine(mariadb.url("pymysql"), connect_args={"ssl_disabled": True})
    made = Counter(Shop(make_engine(), sync_engine), registry)
    yield made
    assert 0 == made.out()
    made.judge()
    made.users()
    assert (made.left, 0) == tuple(each.snapshot().unreturned_total for each in (made.watched, made.watched_sync))
    sync_engine.dispose()
    assert current.get() is None


@pytest.mark.parametrize(
    ("page", "route", "times"),
    [
        ("async/5", "async/{id}", (1, 0)),
        ("sync", "sync", (0, 1)),
        ("threads", "threads", (0, 1)),
        ("sub", "sub", (2, 0)),
        *((f"scope/{number}", f"scope/{number}", (1, 0)) for number in range(len(SCOPES))),
        ("stream/own", "stream/own", (1, 0)),
        *((f"stream/{page}", f"stream/{page}", (1, 0)) for page in YIELDING),
        ("background", "background", (1, 1)),
        ("handed/over", "handed/over", (1, 0)),
    ],
)
async def test_a_request(counter: Counter, page: str, route: str, times: tuple[int, int]) -> None:
    """What it and its dependencies take is its own, wherever that is done and given back; others beside it too."""
    await counter.get(page)
    await asyncio.gather(*(counter.get(page) for _ in range(3)), counter.get("async/6"))
    assert 0 == counter.out()
    expected = tuple({route: 4 * each} if each else {} for each in times)
    expected[0]["async/{id}"] = expected[0].get("async/{id}", 0) + 1
    assert expected == counter.users()


@pytest.mark.parametrize(("error", "status"), [("http", 418), ("other", 500)])
async def test_an_error(counter: Counter, error: str, status: int) -> None:
    """An endpoint that fails gives back what its dependency took."""
    await counter.get(f"fails/{error}", status)
    assert ({"fails/{error}": 1}, {}) == counter.users()


async def test_a_websocket(counter: Counter) -> None:
    """A websocket's dependency and the conversation itself are one owner."""
    assert ["websocket.accept", "websocket.close"] == await counter.talk("/blue/shop/talk/den")
    assert {("WEBSOCKET", "/{tenant}/shop/talk/{room}"): 2} == counter.owners()


async def test_a_dependency_s_session_in_a_stream(counter: Counter) -> None:
    """It is the request's, also where the dependency had ended: then it is left out, which is told."""
    assert "data: 1\n\n" == await counter.get("stream/dependent")
    sessions = counter.shop.sessions
    assert ({"stream/dependent": 1 + len(sessions)}, {}) == counter.users()
    counter.left = len(sessions)
    counter.judge()
    for each in sessions:
        await each.close()


@pytest.mark.parametrize("page", ["own", "dependent", *YIELDING])
@pytest.mark.parametrize("heard", [False, True])
async def test_a_client_who_leaves(counter: Counter, page: str, *, heard: bool) -> None:
    """A stream nobody listens to any more gives back, whether the server says so or refuses to send."""
    left, parts = asyncio.Event(), 0

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal parts
        parts += bool(message.get("body"))
        if parts == 3 and heard:
            left.set()
        elif parts == 3:
            raise OSError

    scope = {"type": "http", "method": "GET", "path": f"/blue/shop/stream/{page}", "query_string": b"endless=1"}
    # Of servers that say so, Starlette waits for that alone.
    asgi = {"version": "3.0", "spec_version": "2.3" if heard else "2.4"}
    with suppress(Exception):
        # Otherwise it raises what it likes.
        await counter.app({**scope, "headers": [], "asgi": asgi}, receive, send)
    sessions = counter.shop.sessions
    assert ({f"stream/{page}": 1 + len(sessions)}, {}) == counter.users()
    # Of versions that had ended it before.
    for each in sessions:
        await each.close()
    # What was sending may be an asynchronous generator that nobody closed.
    gc.collect()
    await until(lambda: counter.out() == 0, "a return")


async def test_a_task_that_goes_on(counter: Counter) -> None:
    """What it takes after the request is the route's that started it."""
    await counter.get("child")
    assert ({}, {}) == counter.users()
    counter.shop.go_on.set()
    await counter.shop.tasks[0]
    assert ({"child": 1}, {}) == counter.users()


async def test_from_one_request_to_another(counter: Counter) -> None:
    """Who took it has it, the whole time, and not who gives it back."""
    await counter.get("leave")
    assert 1 == counter.out()
    await counter.get("find")
    assert ({"leave": 1}, {}) == counter.users()
    assert {("GET", "/{tenant}/shop/leave")} == set(counter.watched.snapshot().route_hold_seconds_total)
