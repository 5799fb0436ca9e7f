"""The middleware: what it answers, what it passes on untouched, and when it watches."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount, Route

from asgi import Events, application, client, foreign, hello
from poolwatch import PoolWatchMiddleware
from poolwatch.watch import watches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx
    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.anyio


@pytest.fixture
async def http(engine: AsyncEngine, registry: CollectorRegistry) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of an application in the one-line form."""
    async with client(application(engine=engine, registry=registry)) as made:
        yield made


async def test_text(http: httpx.AsyncClient) -> None:
    """Plain text is the default, and it parses."""
    answer = await http.get("/metrics")
    assert 200 == answer.status_code
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name for family in parse_text(answer.text)}
    assert {"sqlalchemy_pool_connections", "sqlalchemy_pool_checkouts"} <= families


async def test_openmetrics(http: httpx.AsyncClient) -> None:
    """OpenMetrics is negotiated, and it parses strictly."""
    answer = await http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert "sqlalchemy_pool_connections" in {family.name for family in parse_openmetrics(answer.text)}  # type: ignore[no-untyped-call]


async def test_gzip(http: httpx.AsyncClient) -> None:
    """Compression is negotiated."""
    async with http.stream("GET", "/metrics", headers={"accept-encoding": "gzip"}) as answer:
        assert "gzip" == answer.headers["content-encoding"]
        raw = b"".join([chunk async for chunk in answer.aiter_raw()])
    assert b"sqlalchemy_pool_size" in gzip.decompress(raw)
    plain = await http.get("/metrics", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers


async def test_chosen_names(http: httpx.AsyncClient) -> None:
    """name[] restricts the answer."""
    answer = await http.get("/metrics", params={"name[]": "sqlalchemy_pool_size"})
    assert ["sqlalchemy_pool_size"] == [family.name for family in parse_text(answer.text)]


async def test_head(http: httpx.AsyncClient) -> None:
    """HEAD has the headers of GET and no body."""
    answer = await http.head("/metrics")
    assert (200, b"") == (answer.status_code, answer.content)
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods(http: httpx.AsyncClient, method: str) -> None:
    """Other methods are refused, and told which are not."""
    answer = await http.request(method, "/metrics")
    assert (405, "GET, HEAD") == (answer.status_code, answer.headers["allow"])


@pytest.mark.parametrize(
    "headers", [{"accept": "\xff\xfe"}, {"accept-encoding": "\xff"}, {"x-odd": "\xff"}, {"accept": ";;;,,="}]
)
async def test_odd_headers(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Headers that are no text are no error."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    assert 200 == (await http.get("/metrics", headers=raw)).status_code


async def test_the_registrys_other_metrics(engine: AsyncEngine, registry: CollectorRegistry) -> None:
    """Whatever else the registry holds is served beside ours."""
    Counter("orders", "The application's own.", registry=registry).inc()
    async with client(application(engine=engine, registry=registry)) as http:
        text = (await http.get("/metrics")).text
    assert "orders_total 1.0" in text
    assert 'sqlalchemy_pool_size{pool="shop"} 5.0' in text


async def test_the_applications_requests_pass(http: httpx.AsyncClient) -> None:
    """Only the one path is ours."""
    assert ["hello", "hello"] == [(await http.get(path)).text for path in ("/", "/metrics/more")]
    assert 404 == (await http.get("/metricsmore")).status_code
    assert 200 == (await http.get("/metrics/")).status_code


async def test_another_path(engine: AsyncEngine, registry: CollectorRegistry) -> None:
    """metrics_path moves it; None leaves every path to the application, and pools are watched all the same."""
    async with client(application(engine=engine, registry=registry, metrics_path="/internal/pools/")) as http:
        assert 200 == (await http.get("/internal/pools")).status_code
        assert 404 == (await http.get("/metrics")).status_code
    async with client(application(registry=registry, metrics_path=None)) as http:
        assert 404 == (await http.get("/metrics")).status_code
    assert 5.0 == registry.get_sample_value("sqlalchemy_pool_size", {"pool": "shop"})


@pytest.mark.parametrize("path", ["/api/metrics", "/metrics"])
async def test_behind_a_root_path(engine: AsyncEngine, registry: CollectorRegistry, path: str) -> None:
    """The server's root_path is taken off, whether the server repeats it in the path or not."""
    async with client(application(engine=engine, registry=registry), root_path="/api") as http:
        assert 200 == (await http.get(path)).status_code
        assert 404 == (await http.get("/apimetrics")).status_code


async def test_a_root_path_of_none(registry: CollectorRegistry) -> None:
    """Some servers have none to tell; that fails no request."""
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "root_path": None, "headers": []}
    events = Events()
    await PoolWatchMiddleware(foreign, registry=registry)(scope, events.receive, events.send)
    assert "http.response.start" == events.sent[0]


async def test_inside_a_mount(engine: AsyncEngine, registry: CollectorRegistry) -> None:
    """In a mounted application the path is below the mount, whatever the tenant."""
    inner = application(engine=engine, registry=registry)
    outer = Starlette(routes=[Mount("/{tenant}/api", app=inner)])
    async with client(outer) as http:
        assert 200 == (await http.get("/blue/api/metrics")).status_code
        assert "hello" == (await http.get("/blue/api/")).text
        assert 404 == (await http.get("/metrics")).status_code


@pytest.mark.parametrize("sync", [True, False])
async def test_authorize(registry: CollectorRegistry, engine: AsyncEngine, *, sync: bool) -> None:
    """A false answer is a 403 for the metrics alone."""

    def allowed(scope: Any) -> bool:
        return (b"authorization", b"Bearer right") in scope["headers"]

    async def allowed_later(scope: Any) -> bool:
        return allowed(scope)

    app = application(engine=engine, registry=registry, authorize=allowed if sync else allowed_later)
    async with client(app) as http:
        assert 403 == (await http.get("/metrics")).status_code
        refused = await http.head("/metrics", headers={"authorization": "Bearer wrong"})
        assert (403, b"") == (refused.status_code, refused.content)
        assert 200 == (await http.get("/metrics", headers={"authorization": "Bearer right"})).status_code
        assert "hello" == (await http.get("/")).text


async def test_nothing_watched(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """A scrape that finds no pool says once what is missing."""
    async with client(application(registry=registry)) as http:
        for _ in range(2):
            assert 200 == (await http.get("/metrics")).status_code
    (record,) = [each for each in caplog.records if each.name == "poolwatch"]
    assert "watch(engine)" in record.getMessage()


@pytest.mark.parametrize(
    ("route", "theirs"),
    [
        (Route("/metrics", hello), True),
        (Mount("/metrics", foreign), True),
        (Mount("/", foreign), False),
        (Route("/{path:path}", hello), False),
        (Mount("/metrics/more", foreign), False),
    ],
)
@pytest.mark.parametrize("mounted", [False, True])
async def test_an_endpoint_of_the_applications(
    engine: AsyncEngine,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    *,
    route: BaseRoute,
    theirs: bool,
    mounted: bool,
) -> None:
    """Whoever puts us before metrics of their own is told once, with the remedy."""
    app = Starlette(routes=[route])
    app.add_middleware(PoolWatchMiddleware, engine=engine, registry=registry)
    async with client(Starlette(routes=[Mount("/{tenant}", app)]) if mounted else app) as http:
        for _ in range(2):
            assert "sqlalchemy_pool_size" in (await http.get("/blue/metrics" if mounted else "/metrics")).text
    assert theirs == sum("metrics_path=None" in each.getMessage() for each in caplog.records)


async def test_several_engines_with_names(engine: AsyncEngine, registry: CollectorRegistry) -> None:
    """A mapping gives engines their names."""
    other = create_async_engine("mysql+aiomysql://127.0.0.1:1/shop")
    async with client(application(engines={"orders": engine, "stock": other}, registry=registry)) as http:
        await http.get("/")
    assert ["orders", "stock"] == sorted(each.name for each in watches(registry))


def test_constructor_does_nothing(engine: AsyncEngine, registry: CollectorRegistry) -> None:
    """Frameworks construct middleware more than once; nothing is watched or registered by that."""
    for _ in range(3):
        PoolWatchMiddleware(hello, engine=engine, registry=registry)  # type: ignore[arg-type]
    assert [] == watches(registry)
    assert [] == list(registry.collect())
