"""Beside other instrumentations of the application: all of their metrics are what they were, and ours are right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY, CollectorRegistry, make_asgi_app
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_fastapi_instrumentator import Instrumentator
from sqlalchemy import create_engine
from starlette_exporter import PrometheusMiddleware, handle_metrics

from asgi import client
from beside import ASYNC_OWNERS, SYNC_OWNERS, Pages, Series, counted, series
from poolwatch import PoolWatchMiddleware
from poolwatch.requests import current
from poolwatch.watch import watches
from support import assert_books

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine
    from starlette.applications import Starlette

    from poolwatch.demo.servers import MariaDB

pytestmark = pytest.mark.anyio

# Theirs, while an application answers a scrape: that request is one that is being answered.
BEING_ANSWERED = ("http_server_active_requests", "starlette_requests_in_progress")


class Tool:
    """An instrumentation, measuring one application.

    Attributes:
        registry: Where it registers.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def measure(self, app: Any) -> None:
        """Measure *app*, and expose the metrics at ``/metrics``."""
        raise NotImplementedError

    def leave(self) -> None:
        """Leave nothing in this process."""


class OfFastAPI(Tool):
    """prometheus-fastapi-instrumentator, as its README has it."""

    def measure(self, app: Any) -> None:
        """Measure, and expose by a route."""
        Instrumentator(registry=self.registry).instrument(app).expose(app)


class OfStarlette(Tool):
    """starlette_exporter, which knows the one registry."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.registry = REGISTRY
        self._options = options

    def measure(self, app: Any) -> None:
        """Measure, and expose by a route."""
        app.add_middleware(PrometheusMiddleware, **self._options)
        app.add_route("/metrics", handle_metrics)

    def leave(self) -> None:
        """Take its metrics, which it keeps for good, off the registry."""
        for metric in PrometheusMiddleware._metrics.values():
            REGISTRY.unregister(metric)
        PrometheusMiddleware._metrics.clear()


class OfOpenTelemetry(Tool):
    """OpenTelemetry's ASGI middleware, with its exporter for Prometheus."""

    def __init__(self) -> None:
        super().__init__()
        self._meters = MeterProvider([PrometheusMetricReader(registry=self.registry)], shutdown_on_exit=False)

    def measure(self, app: Any) -> None:
        """Measure, and expose by a mount."""
        app.add_middleware(OpenTelemetryMiddleware, meter_provider=self._meters)
        app.mount("/metrics", make_asgi_app(self.registry))

    def leave(self) -> None:
        """Take its collector off the registry."""
        self._meters.shutdown()


class OfOpenTelemetryForFastAPI(OfOpenTelemetry):
    """OpenTelemetry around all of a FastAPI application, other middleware included."""

    _app: Any = None

    def measure(self, app: Any) -> None:
        """Measure, and expose by a mount."""
        self._app = app
        FastAPIInstrumentor.instrument_app(app, meter_provider=self._meters)
        app.mount("/metrics", make_asgi_app(self.registry))

    def leave(self) -> None:
        """Give BackgroundTask back the method that it had."""
        FastAPIInstrumentor.uninstrument_app(self._app)
        super().leave()


@pytest.fixture
def make_pages(mariadb: MariaDB, make_engine: Callable[..., AsyncEngine]) -> Iterator[Callable[[], Pages]]:
    """Return a function that makes pages on engines of their own."""
    sync_engines = []

    def make() -> Pages:
        sync_engines.append(create_engine(mariadb.url("pymysql"), connect_args={"ssl_disabled": True}))
        return Pages(make_engine(), sync_engines[-1])

    yield make
    for each in sync_engines:
        each.dispose()
    assert current.get() is None


async def without_us(make: Callable[[], Tool], pages: Pages, framework: str) -> Series:
    """Return what *make*'s tool counts, alone."""
    tool, app = make(), getattr(pages, framework)()
    try:
        tool.measure(app)
        await pages.visit(app)
        return counted(tool.registry)
    finally:
        tool.leave()


def both(tool: Tool, pages: Pages, framework: str, *, ours_outside: bool, **options: Any) -> Starlette:
    """Return an application with both."""
    app: Starlette = getattr(pages, framework)()
    options = {"registry": tool.registry, **options}
    if ours_outside:
        tool.measure(app)
    app.add_middleware(PoolWatchMiddleware, engines=pages.engines, **options)
    if not ours_outside:
        tool.measure(app)
    return app


def assert_ours(registry: CollectorRegistry) -> None:
    """Assert that every connection of one visit is in our books, and whose it was."""
    for watched, owners in zip(watches(registry), (ASYNC_OWNERS, SYNC_OWNERS), strict=True):
        snapshot = watched.snapshot()
        assert_books(snapshot)
        assert owners == snapshot.route_checkouts_total
        assert (0, 1) == (snapshot.unreturned_total, snapshot.connections["idle"])


async def scrape(app: Any, path: str = "/metrics", accept: str = "*/*") -> str:
    """Return what *app* answers there."""
    async with client(app) as http:
        answer = await http.get(path, headers={"accept": accept}, follow_redirects=True)
    assert 200 == answer.status_code
    return answer.text


def leave(tool: Tool, registry: CollectorRegistry) -> None:
    """Let both go."""
    for each in watches(registry):
        each.close()
    tool.leave()


@pytest.mark.parametrize("metrics_path", [None, "/metrics"], ids=["theirs-answers", "ours-answers"])
@pytest.mark.parametrize("ours_outside", [False, True], ids=["inside", "outside"])
@pytest.mark.parametrize(
    ("make", "framework"),
    [
        (OfFastAPI, "fastapi"),
        (OfFastAPI, "starlette"),
        (OfStarlette, "fastapi"),
        (OfStarlette, "starlette"),
        (OfOpenTelemetry, "fastapi"),
        (OfOpenTelemetry, "starlette"),
        (OfOpenTelemetryForFastAPI, "fastapi"),
    ],
)
async def test_both(
    make_pages: Callable[[], Pages], make: type[Tool], framework: str, metrics_path: str | None, *, ours_outside: bool
) -> None:
    """In either order theirs counts each request as it does alone, and whoever answers /metrics answers for both."""
    expected = await without_us(make, make_pages(), framework)
    tool, pages = make(), make_pages()
    try:
        app = both(tool, pages, framework, ours_outside=ours_outside, metrics_path=metrics_path)
        await pages.visit(app)
        assert expected == counted(tool.registry)
        assert_ours(tool.registry)
        text = await scrape(app)
    finally:
        leave(tool, tool.registry)
    served = series(text)
    assert set(expected) <= set(served)
    assert {
        key: value for key, value in expected.items() if served[key] != value and not key[0].startswith(BEING_ANSWERED)
    } == {}
    for pool, owners in (("async", ASYNC_OWNERS), ("sync", SYNC_OWNERS)):
        assert f'sqlalchemy_pool_checkouts_total{{pool="{pool}"}} {sum(owners.values())}.0' in text
        assert f'sqlalchemy_pool_internal_errors_total{{pool="{pool}"}} 0.0' in text


@pytest.mark.parametrize("ours_outside", [False, True], ids=["inside", "outside"])
async def test_a_registry_each(
    make_pages: Callable[[], Pages], registry: CollectorRegistry, *, ours_outside: bool
) -> None:
    """What is kept apart stays apart: each answers at its own path, for itself alone."""
    expected = await without_us(OfFastAPI, make_pages(), "fastapi")
    tool, pages = OfFastAPI(), make_pages()
    try:
        options = {"registry": registry, "metrics_path": "/pools"}
        app = both(tool, pages, "fastapi", ours_outside=ours_outside, **options)
        await pages.visit(app)
        assert_ours(registry)
        theirs, ours = await scrape(app), await scrape(app, "/pools")
    finally:
        leave(tool, registry)
    assert expected == series(theirs)
    assert {} == series(ours)
    assert ("sqlalchemy_pool_" in theirs, "sqlalchemy_pool_" in ours) == (False, True)


@pytest.mark.parametrize("ours_outside", [False, True], ids=["inside", "outside"])
async def test_exemplars(make_pages: Callable[[], Pages], *, ours_outside: bool) -> None:
    """Where we answer for them, OpenMetrics still has their exemplars."""
    tool, pages = OfStarlette(exemplars=lambda: {"trace_id": "4711"}), make_pages()
    try:
        app = both(tool, pages, "starlette", ours_outside=ours_outside)
        await pages.visit(app)
        text = await scrape(app, accept="application/openmetrics-text; version=1.0.0")
    finally:
        leave(tool, tool.registry)
    families = {family.name: family for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
    assert "sqlalchemy_pool_connections" in families
    requests = [each for each in families["starlette_requests"].samples if each.name.endswith("_total")]
    assert requests
    assert [{"trace_id": "4711"}] * len(requests) == [each.exemplar.labels for each in requests]
