"""The middleware and the server's own events: lifespan, websockets, starts that fail."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from asgi import Events, application, client
from poolwatch import ConflictError, PoolWatchMiddleware, watch
from poolwatch.listeners import PoolListeners
from poolwatch.watch import watches

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine
    from starlette.websockets import WebSocket

pytestmark = pytest.mark.anyio


async def test_lifespan(engine: AsyncEngine, registry: CollectorRegistry) -> None:
    """The lifespan passes; what the middleware watched is closed at its end, what somebody else did is not."""
    other = create_async_engine("mysql+aiomysql://127.0.0.1:1/other")
    kept = watch(other, registry=registry)
    app = application(engines=[engine, other], registry=registry)
    events = Events({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    await app({"type": "lifespan", "app": app, "state": {}}, events.receive, events.send)
    assert ["lifespan.startup.complete", "lifespan.shutdown.complete"] == events.sent
    assert [kept] == watches(registry)
    # A server that goes on is served as at the beginning.
    async with client(app) as http:
        await http.get("/")
    assert ["other", "shop"] == sorted(each.name for each in watches(registry))


async def test_untouched(registry: CollectorRegistry) -> None:
    """Lifespan, websockets and requests reach the application with the server's own callables."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    middleware = PoolWatchMiddleware(app, registry=registry)
    for kind in ("lifespan", "websocket", "http"):
        events = Events()
        scope = {"type": kind, "path": "/metrics" if kind == "websocket" else "/", "method": "GET"}
        await middleware(scope, events.receive, events.send)
        assert (scope, events.receive, events.send) == seen.pop()


async def test_websocket(registry: CollectorRegistry, engine: AsyncEngine) -> None:
    """A websocket at the metrics' own path is the application's."""

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/metrics", echo)])
    app.add_middleware(PoolWatchMiddleware, engine=engine, registry=registry)
    events = Events({"type": "websocket.connect"})
    scope = {"type": "websocket", "path": "/metrics", "headers": [], "query_string": b"", "app": app}
    await app(scope, events.receive, events.send)
    assert ["websocket.accept", "websocket.close"] == events.sent


async def test_startup_fails_loudly(engine: AsyncEngine, registry: CollectorRegistry) -> None:
    """A pool that cannot be watched stops the server's start with the reason, each time, and leaves nothing watched."""
    other = create_async_engine("mysql+aiomysql://127.0.0.1:1/other")
    watch(engine, registry=CollectorRegistry())
    app = application(engines=[engine, other], registry=registry)
    for _ in range(2):
        events = Events({"type": "lifespan.startup"})
        with pytest.raises(ConflictError):
            await app({"type": "lifespan", "app": app, "state": {}}, events.receive, events.send)
        (message,) = events.messages
        assert "lifespan.startup.failed" == message["type"]
        assert "'shop'" in message["message"]
        assert [] == watches(registry)


async def test_one_engine_that_cannot_be_watched(
    engine: AsyncEngine, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a lifespan the other engines are watched all the same."""
    other = create_async_engine("mysql+aiomysql://127.0.0.1:1/other")
    watch(engine, registry=CollectorRegistry())
    async with client(application(engines=[engine, other], registry=registry)) as http:
        assert "hello" == (await http.get("/")).text
    assert ["other"] == [each.name for each in watches(registry)]
    assert 1 == len([each for each in caplog.records if "'shop'" in each.getMessage()])


async def test_a_mistake_of_ours(
    engine: AsyncEngine,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error inside poolwatch stops neither the start nor a request, and leaves the pool as it was."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(PoolListeners, "attach", fail)
    app = application(engine=engine, registry=registry)
    events = Events({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    await app({"type": "lifespan", "app": app, "state": {}}, events.receive, events.send)
    assert ["lifespan.startup.complete", "lifespan.shutdown.complete"] == events.sent
    async with client(app) as http:
        assert "hello" == (await http.get("/")).text
    assert AsyncAdaptedQueuePool is type(engine.pool)
    assert {logging.ERROR} == {each.levelno for each in caplog.records if each.name == "poolwatch"}


async def test_both_forms_together(engine: AsyncEngine, registry: CollectorRegistry) -> None:
    """A watch() in the lifespan of an application whose middleware has the engine too may say what that left open."""
    async with client(application(engine=engine, registry=registry)) as http:
        await http.get("/")
        watched = watch(engine, name="orders", inactivity_limit=350, registry=registry)
        text = (await http.get("/metrics")).text
    assert [watched] == watches(registry)
    assert 'sqlalchemy_pool_inactivity_limit_seconds{pool="orders",source="configured"} 350.0' in text


async def test_without_a_lifespan_nobody_fails(
    engine: AsyncEngine, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no lifespan came first, a pool that cannot be watched is logged once and requests are served."""
    Gauge("sqlalchemy_pool_size", "Somebody else's.", registry=registry)
    async with client(application(engine=engine, registry=registry)) as http:
        assert ["hello", "hello"] == [(await http.get("/")).text for _ in range(2)]
    assert [logging.ERROR] == [each.levelno for each in caplog.records if each.name == "poolwatch"]
