"""Under a real server: behind a root path, through a lifespan, with an exhausted pool, with the database down."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from poolwatch import PoolWatchMiddleware
from poolwatch.demo.servers import MariaDB, free_port
from poolwatch.watch import watches
from support import served, use

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request


def application(url: str, registry: CollectorRegistry, **options: int) -> Starlette:
    """Return an application whose one page uses the database, with the middleware in its one-line form."""
    engine = create_async_engine(url, **options)

    async def page(_request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(await use(engine)))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    app = Starlette(routes=[Route("/", page)], lifespan=lifespan)
    app.add_middleware(PoolWatchMiddleware, engine=engine, registry=registry)
    app.state.engine = engine
    return app


@pytest.mark.parametrize("root_path", ["", "/api"])
def test_scrape(mariadb: MariaDB, registry: CollectorRegistry, root_path: str) -> None:
    """A server with a root path answers at /metrics below it, counts the request, and lets go at its end."""
    app, port = application(mariadb.url(), registry), free_port()
    with start_blocking_portal() as portal, served(portal, app, port, root_path=root_path):
        # The proxy in front takes the prefix off; the server puts it into the scope.
        assert "1" == httpx.get(f"http://127.0.0.1:{port}/").text
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics")
        assert 200 == answer.status_code
        assert 'sqlalchemy_pool_checkouts_total{pool="app"} 1.0' in answer.text
        assert 'sqlalchemy_pool_connections{pool="app",state="idle"} 1.0' in answer.text
        assert 'sqlalchemy_pool_route_checkouts_total{method="GET",pool="app",route="/"} 1.0' in answer.text
        assert 1 == len(watches(registry))
    assert [] == watches(registry)


def test_exhausted_and_down(registry: CollectorRegistry) -> None:
    """The metrics answer while every connection is out and callers queue, and when the database is gone."""
    port = free_port()
    with MariaDB() as own, start_blocking_portal() as portal:
        app = application(own.url(), registry, pool_size=1, max_overflow=0, pool_timeout=60)
        with (
            served(portal, app, port),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", limits=httpx.Limits(max_keepalive_connections=0)) as http,
        ):
            held = portal.call(app.state.engine.connect().start)
            waiting = portal.start_task_soon(use, app.state.engine)
            assert 'sqlalchemy_pool_connections{pool="app",state="checked_out"} 1.0' in http.get("/metrics").text
            assert 'sqlalchemy_pool_pending_checkouts{pool="app"} 1.0' in http.get("/metrics").text
            # Nothing is asked of the database by a scrape.
            sent: list[str] = []
            event.listen(app.state.engine.sync_engine, "before_cursor_execute", lambda *seen: sent.append(seen[2]))
            http.get("/metrics")
            assert [] == sent
            portal.call(held.close)
            waiting.result(20)
            own.stop()
            assert 500 == http.get("/").status_code
            text = http.get("/metrics").text
            assert 'sqlalchemy_pool_closes_total{pool="app",reason="disconnect"} 1.0' in text
            assert 500 == http.get("/").status_code
            text = http.get("/metrics").text
            assert 'sqlalchemy_pool_checkout_failures_total{pool="app",reason="connect"} 1.0' in text
