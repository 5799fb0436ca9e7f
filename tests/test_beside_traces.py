"""Beside OpenTelemetry's instrumentation of SQLAlchemy: its spans and counts are what they were, and ours are right."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from beside import ASYNC_OWNERS, SYNC_OWNERS, Pages, Series, counted
from poolwatch import PoolWatchMiddleware, watch
from poolwatch.watch import watches
from support import assert_books, moved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolwatch import PoolSnapshot, Watch
    from poolwatch.demo.servers import MariaDB

    Act = Callable[[Connection], object]

pytestmark = pytest.mark.anyio


class Tracing:
    """OpenTelemetry's instrumentation, with providers of its own.

    Attributes:
        registry: Where its exporter registers.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._spans = InMemorySpanExporter()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        meters = MeterProvider([PrometheusMetricReader(registry=self.registry)], shutdown_on_exit=False)
        self.providers: dict[str, Any] = {"tracer_provider": tracers, "meter_provider": meters}

    def spans(self) -> list[tuple[str, str | None]]:
        """Return the name of each span that has ended, in order, and of the one around it."""
        spans = self._spans.get_finished_spans()
        names = {each.context.span_id: each.name for each in spans if each.context}
        return [(each.name, names[each.parent.span_id] if each.parent else None) for each in spans]

    def usage(self) -> tuple[float, float]:
        """Return how many connections it has as idle, and as used."""
        found = {
            dict(labels)["state"]: value
            for (name, labels), value in counted(self.registry).items()
            if name == "db_client_connections_usage_connections" and value is not None
        }
        return found.get("idle", 0.0), found.get("used", 0.0)


@contextmanager
def traced(engine: Engine | None = None, **options: Any) -> Iterator[Tracing]:
    """Instrument *engine*, or those that are made meanwhile; its say over SQLAlchemy's version is not asked for."""
    tracing, instrumentor = Tracing(), SQLAlchemyInstrumentor()
    instrumentor.instrument(engine=engine, **{"skip_dep_check": True, **tracing.providers, **options})
    try:
        yield tracing
    finally:
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()
        tracing.providers["meter_provider"].shutdown()


class Caller:
    """Uses an engine of either kind.

    Attributes:
        engine: The sync engine, an async one's own if it is one.
    """

    def __init__(self, engine: AsyncEngine | None, sync_engine: Engine) -> None:
        self.made = sync_engine if engine is None else engine
        self._async = engine
        self.engine = sync_engine if engine is None else engine.sync_engine

    async def use(self, act: Act) -> None:
        """Do *act* with a connection; an error of the database's is as good."""
        try:
            if self._async is None:
                with self.engine.connect() as connection:
                    act(connection)
            else:
                async with self._async.connect() as outer:
                    await outer.run_sync(act)
        except DBAPIError:
            pass

    async def dispose(self) -> None:
        """Close what is idle."""
        if self._async is None:
            self.engine.dispose()
        else:
            await self._async.dispose()


@pytest.fixture
def make_caller(
    mariadb: MariaDB, make_engine: Callable[..., AsyncEngine], request: pytest.FixtureRequest
) -> Iterator[Callable[[], Caller]]:
    """Return a function that makes callers with an engine of their own, of the kind that the test asks for."""
    engines: list[Engine] = []

    def make() -> Caller:
        engines.append(create_engine(mariadb.url("pymysql"), connect_args={"ssl_disabled": True}))
        return Caller(make_engine() if request.param == "async" else None, engines[-1])

    yield make
    for each in engines:
        each.dispose()


both_kinds = pytest.mark.parametrize("make_caller", ["async", "sync"], indirect=True)


def one(connection: Connection) -> None:
    """Run a statement."""
    connection.exec_driver_sql("SELECT 1")


async def live(caller: Caller, server: MariaDB, usage: Callable[[], object]) -> list[object]:
    """Put *caller*'s engine through what a pool knows; return what *usage* says at each step."""
    said: list[object] = []

    def inside(connection: Connection) -> None:
        one(connection)
        said.append(usage())

    def killed(connection: Connection) -> None:
        server.kill(int(str(connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar())))
        one(connection)

    acts: list[Act] = [
        inside,
        lambda connection: connection.exec_driver_sql("no statement"),
        lambda connection: connection.invalidate(),
        killed,
        inside,
    ]
    for act in acts:
        await caller.use(act)
        said.append(usage())
    await caller.dispose()
    return [*said, usage()]


def assert_ours(watched: Watch, checkouts: int) -> PoolSnapshot:
    """Assert the books, after :func:`live`."""
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert (checkouts, 3) == (snapshot.checkouts_total, snapshot.connects_total)
    assert {"invalidated": 1, "disconnect": 1, "disposed": 1} == moved(snapshot.closes_total)
    assert {("killed", "in_use"): 1} == moved(snapshot.disconnects_total)
    return snapshot


@both_kinds
@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("ours_first", [False, True])
async def test_both(mariadb: MariaDB, make_caller: Callable[[], Caller], *, ours_first: bool, guard: bool) -> None:
    """Whoever came first, its spans and its idle and used connections are those that it has alone."""
    caller = make_caller()
    with traced(caller.engine) as tracing:
        alone = await live(caller, mariadb, tracing.usage), tracing.spans()
    caller, registry = make_caller(), CollectorRegistry()
    if ours_first:
        watched = watch(caller.made, registry=registry, guard=guard)
    with traced(caller.engine) as tracing:
        if not ours_first:
            watched = watch(caller.made, registry=registry, guard=guard)
        assert alone == (await live(caller, mariadb, tracing.usage), tracing.spans())
        assert_ours(watched, 5)
    watched.close()


@both_kinds
async def test_it_leaves_while_we_watch(mariadb: MariaDB, make_caller: Callable[[], Caller]) -> None:
    """Its listeners go, between two requests or while one holds a connection, and ours stay."""
    caller = make_caller()
    listeners = len(list(caller.engine.pool.dispatch.checkout))
    with traced(caller.engine) as tracing:
        watched = watch(caller.made, registry=CollectorRegistry())
        await caller.use(one)
        assert (1, 0) == tracing.usage()

        def leave(connection: Connection) -> None:
            SQLAlchemyInstrumentor().uninstrument()
            one(connection)

        await caller.use(leave)
        # Frozen while the connection was out.
        assert (0, 1) == tracing.usage()
        await live(caller, mariadb, lambda: None)
        assert (0, 1) == tracing.usage()
        assert_ours(watched, 7)
    watched.close()
    assert listeners == len(list(caller.engine.pool.dispatch.checkout))


@both_kinds
async def test_we_leave_while_it_listens(mariadb: MariaDB, make_caller: Callable[[], Caller]) -> None:
    """Once our watch is closed, its counts go on as they were."""
    caller = make_caller()
    with traced(caller.engine) as tracing:
        alone = await live(caller, mariadb, tracing.usage)
        spans = tracing.spans()
    caller = make_caller()
    with traced(caller.engine) as tracing:
        watched = watch(caller.made, registry=CollectorRegistry())
        watched.close()
        assert (alone, spans) == (await live(caller, mariadb, tracing.usage), tracing.spans())


@both_kinds
async def test_what_the_guard_replaces(mariadb: MariaDB, make_caller: Callable[[], Caller]) -> None:
    """It sees the close and the connect: what it has as idle and used is what there is."""
    caller = make_caller()
    with traced(caller.engine) as tracing:
        watched = watch(caller.made, registry=CollectorRegistry(), guard=True)
        found: list[int] = []
        await caller.use(lambda connection: found.append(int(str(_id(connection)))))
        mariadb.kill(found[0])
        await caller.use(one)
        snapshot = watched.snapshot()
        assert_books(snapshot)
        assert {"guard_dead": 1} == moved(snapshot.reconnects_total)
        assert (1, 0) == tracing.usage() == (snapshot.connections["idle"], snapshot.connections["checked_out"])
    watched.close()


def _id(connection: Connection) -> object:
    return connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar()


@pytest.mark.parametrize("ours_outside", [False, True], ids=["inside", "outside"])
async def test_a_traced_application(
    mariadb: MariaDB, make_engine: Callable[..., AsyncEngine], *, ours_outside: bool
) -> None:
    """Statements stay in their request's trace, in threads too, and nothing of it is counted otherwise."""
    alone = await visited(mariadb, make_engine)
    statements = [around for name, around in alone[0].elements() if name.startswith("SELECT")]
    assert 7 == len(statements) == len(list(filter(None, statements)))
    assert alone == await visited(mariadb, make_engine, around=ours_outside)


async def visited(
    mariadb: MariaDB, make_engine: Callable[..., AsyncEngine], *, around: bool | None = None
) -> tuple[Counter[tuple[str, str | None]], Series]:
    """Return the spans and counts of a FastAPI application that is traced throughout.

    *around*: we are there too, outside another middleware or inside it.
    """
    pages = Pages(make_engine(), create_engine(mariadb.url("pymysql"), connect_args={"ssl_disabled": True}))
    app = pages.fastapi()
    with traced(engines=[pages.engine.sync_engine, pages.sync_engine]) as tracing:
        FastAPIInstrumentor.instrument_app(app, **tracing.providers)  # type: ignore[arg-type]
        if around is False:
            app.add_middleware(PoolWatchMiddleware, engines=pages.engines, registry=tracing.registry)
        app.add_middleware(OpenTelemetryMiddleware, **tracing.providers)
        if around:
            app.add_middleware(PoolWatchMiddleware, engines=pages.engines, registry=tracing.registry)
        try:
            await pages.visit(app)
        finally:
            FastAPIInstrumentor.uninstrument_app(app)  # type: ignore[arg-type]
        found = Counter(tracing.spans()), counted(tracing.registry)
        for watched, owners in zip(watches(tracing.registry), (ASYNC_OWNERS, SYNC_OWNERS), strict=around is not None):
            snapshot = watched.snapshot()
            assert_books(snapshot)
            assert owners == snapshot.route_checkouts_total
            watched.close()
    pages.sync_engine.dispose()
    return found


@pytest.mark.once
@both_kinds
async def test_it_declines(
    mariadb: MariaDB, make_caller: Callable[[], Caller], caplog: pytest.LogCaptureFixture
) -> None:
    """SQLAlchemy 2.1 is none of the versions that it knows: it says so and does nothing, and we do what we do."""
    caller = make_caller()
    watched = watch(caller.made, registry=CollectorRegistry())
    with traced(caller.engine, skip_dep_check=False) as tracing:
        assert ["falls outside" in record.getMessage() for record in caplog.records] == [True]
        assert {(0, 0)} == set(await live(caller, mariadb, tracing.usage))
        assert [] == tracing.spans()
        assert_ours(watched, 5)
    watched.close()
