"""A watched pool, and an application whose one page leaves out of it what a test says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from asgi import client
from poolwatch import PoolWatchMiddleware, unreturned, watch
from support import assert_books, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import httpx
    from prometheus_client import CollectorRegistry
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from poolwatch import Watch

    MakeEngine = Callable[..., AsyncEngine]
    Work = Callable[[], Awaitable[object]]


class Stage:
    """A watched pool, and an application whose one page does what a test says.

    Attributes:
        held: Connections that were taken.
        traces: Keep where in the code they were.
    """

    def __init__(self, engine: AsyncEngine, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
        self.engine = engine
        self.watched: Watch = watch(engine, name="orders", registry=registry)
        self.held: list[AsyncConnection] = []
        self.traces = False
        self._caplog = caplog
        self._registry = registry

    async def take(self) -> None:
        """Take a connection."""
        self.held.append(await self.engine.connect())

    async def give_back(self) -> None:
        """Give one back."""
        await self.held.pop().close()

    async def request(self, work: Work, background: Work | None = None) -> httpx.Response:
        """Make a request that does *work*, and *background* once it is answered."""

        async def page(_request: Any) -> PlainTextResponse:
            await work()
            return PlainTextResponse("done", background=None if background is None else BackgroundTask(background))

        inner = Starlette(routes=[Route("/{page}", page)])
        inner.add_middleware(PoolWatchMiddleware, metrics_path=None)
        shop = Starlette(routes=[Mount("/shop", inner)])
        app: Any = PoolWatchMiddleware(shop, registry=self._registry, route_details=True, trace_checkouts=self.traces)
        async with client(app) as http:
            return await http.get("/shop/buy")

    async def count(self) -> int:
        """Return how many were found, after a look at the books."""
        await self.judged()
        snapshot = self.watched.snapshot()
        assert_books(snapshot)
        return snapshot.unreturned_total

    def lines(self) -> list[str]:
        """Return what was logged since the last time."""
        found = [each.getMessage() for each in self._caplog.records if each.name == "poolwatch"]
        self._caplog.clear()
        return found

    async def judged(self) -> None:
        """Wait until no request is left that was not judged."""
        await until(lambda: not self.watched._ledger.endings, "a judgement without a reader")


@pytest.fixture
async def stage(
    make_engine: MakeEngine,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Stage]:
    """Return the stage; nothing was logged before, and nobody is left unjudged."""
    monkeypatch.setattr(unreturned, "MOMENT", 0.03)
    made = Stage(make_engine(), registry, caplog)
    yield made
    while made.held:
        await made.give_back()
    assert not made.watched._ledger.endings
