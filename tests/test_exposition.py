"""What a scrape says: names, labels and values as the catalogue has them, within the budget."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asgi import client
from poolwatch import PoolWatchMiddleware, watch
from poolwatch.catalog import BY_FIELD, CATALOG, PREFIX
from poolwatch.demo.servers import find
from poolwatch.requests import Account, Terms, current
from poolwatch.snapshot import PoolSnapshot
from support import fill, until, use

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine
    from starlette.requests import Request

    from poolwatch.demo.servers import MariaDB

    MakeEngine = Callable[..., AsyncEngine]

BUDGET = 250
ROUTES = 30


@pytest.fixture
async def exposition(mariadb: MariaDB, make_engine: MakeEngine, registry: CollectorRegistry) -> str:
    """Return the text of a pool with 15 connections that has lost one, all metrics on."""
    engine = make_engine(pool_size=15, pool_pre_ping=True)
    watched = watch(engine, name="orders", registry=registry, per_connection=True, inactivity_limit=350)
    first, *_ = await fill(engine, 15)
    mariadb.kill(first)
    ledger = watched._ledger
    await until(
        lambda: all(ledger.clock() - (each.active or 0) > ledger.survived for each in ledger.slots.values()),
        "an inactivity that none has survived",
    )
    await use(engine)
    # In a request, as well as outside any.
    current.set(Account(None, Terms(lambda _: ("GET", "/items/{id}"), 1, details=True)))
    await use(engine)
    current.set(None)
    return generate_latest(registry).decode()


@pytest.mark.anyio
@pytest.mark.tooling
async def test_promtool_is_content(exposition: str) -> None:
    """Prometheus' own linter finds nothing to say."""
    command = [find("promtool", "prometheus"), "check", "metrics"]
    checked = subprocess.run(command, input=exposition.encode(), capture_output=True, check=False)  # noqa: ASYNC221
    assert (0, b"") == (checked.returncode, checked.stdout + checked.stderr)


@pytest.mark.anyio
async def test_follows_the_catalogue(exposition: str) -> None:
    """Every family of the table is there with its type, help and labels; no other is."""
    families = {family.name: family for family in text_string_to_metric_families(exposition)}
    assert {metric.name.removesuffix("_total") for metric in CATALOG} == set(families)
    for metric in CATALOG:
        family = families[metric.name.removesuffix("_total")]
        kind = "gauge" if metric.kind == "info" else metric.kind
        assert (kind, metric.help) == (family.type, family.documentation), metric.name
        for sample in family.samples:
            labels = {"pool", *(label.name for label in metric.labels)}
            assert labels == set(sample.labels) - {"le"}, metric.name
            assert "orders" == sample.labels["pool"]
            assert sample.value == sample.value, f"{metric.name} is NaN"


@pytest.mark.anyio
async def test_every_label_value_from_the_start(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """Known label values exist at 0 before anything has happened, so that increase() sees the first event."""
    engine = make_engine()
    watch(engine, name="orders", registry=registry)
    families = {family.name: family for family in registry.collect()}
    for metric in CATALOG:
        for label in metric.labels:
            found = (
                {sample.labels[label.name] for sample in families[metric.name.removesuffix("_total")].samples}
                if (metric.name.removesuffix("_total") in families)
                else set()
            )
            assert set(label.values) <= found, metric.name
            if metric.kind == "counter":
                # Routes are not known before they are used.
                samples = families[metric.name.removesuffix("_total")].samples if label.values else ()
                assert {0.0} >= {sample.value for sample in samples}


@pytest.mark.anyio
async def test_series_budget(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A pool of 15 connections that 30 routes use, and who is none, has at most 250 series with default arguments."""
    engine = make_engine(pool_size=15)

    async def page(_request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(await use(engine)))

    app = Starlette(routes=[Route(f"/page{number}/{{id}}", page) for number in range(ROUTES)])
    app.add_middleware(PoolWatchMiddleware, engine=engine, registry=registry)
    async with client(app) as http:
        await http.get("/metrics")
        await fill(engine, 15)
        for number in range(ROUTES):
            assert "1" == (await http.get(f"/page{number}/{number}")).text
    series = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert ROUTES + 1 == sum("route_hold_seconds_total{" in line for line in series)
    assert len(series) <= BUDGET


def test_histograms_are_small() -> None:
    """No histogram has more than ten finite buckets."""
    assert all(0 < len(metric.buckets) <= 10 for metric in CATALOG if metric.kind == "histogram")


def test_snapshot_has_the_catalogues_fields() -> None:
    """Every family is a field of the snapshot and every field is a family."""
    assert set(BY_FIELD) == set(PoolSnapshot.__dataclass_fields__)
    assert all(metric.name.startswith(PREFIX) for metric in CATALOG)


@pytest.mark.anyio
async def test_slots(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A slot's number is the smallest free one, stays while its connection lives, and is given out again."""
    engine = make_engine(pool_size=2, max_overflow=1)
    watched = watch(engine, registry=registry, per_connection=True)
    first, second = await engine.connect(), await engine.connect()
    assert {"0", "1"} == set(watched.snapshot().connection_created_timestamp_seconds)
    created = watched.snapshot().connection_created_timestamp_seconds["1"]
    await first.invalidate()
    await first.close()
    assert {"1": created} == watched.snapshot().connection_created_timestamp_seconds
    await use(engine)
    assert {"0", "1"} == set(watched.snapshot().connection_created_timestamp_seconds)
    assert created == watched.snapshot().connection_created_timestamp_seconds["1"]
    await second.close()


@pytest.mark.anyio
async def test_no_slot_beyond_the_limit(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """A connection that is out while dispose() makes room for others does not add a slot to the pool's."""
    engine = make_engine(pool_size=1, max_overflow=0)
    watched = watch(engine, registry=registry, per_connection=True)
    async with engine.connect():
        assert {"0"} == set(watched.snapshot().connection_created_timestamp_seconds)
        await engine.dispose()
        async with engine.connect():
            assert 2 == watched.snapshot().connections["checked_out"]
            assert {"0"} == set(watched.snapshot().connection_created_timestamp_seconds)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "new\nline", "ünïcode", "{}", "a" * 300])
async def test_hostile_names(make_engine: MakeEngine, registry: CollectorRegistry, name: str) -> None:
    """Whatever a pool is called, the text parses and gives the name back."""
    engine = make_engine()
    watch(engine, name=name, registry=registry)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    assert {name} == {sample.labels["pool"] for family in families for sample in family.samples}


@pytest.mark.anyio
async def test_no_secret(make_engine: MakeEngine, registry: CollectorRegistry) -> None:
    """Neither user nor password nor URL is in the text or in what a Watch says of itself."""
    engine = make_engine(pool_logging_name="orders")
    watched = watch(engine, registry=registry)
    await use(engine)
    for text in (generate_latest(registry).decode(), repr(watched), str(watched.snapshot())):
        assert "app:app" not in text
        assert "mysql+aiomysql" not in text
