"""A served application with many pools, and a Prometheus that scrapes it and is asked as Grafana asks."""

from __future__ import annotations

import gc
import re
import tempfile
import time
from contextlib import ExitStack, contextmanager
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from prometheus_client import CollectorRegistry
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from generator import rules
from generator.options import DEFAULT
from generator.rules.model import groups_text
from panels_app import Pool, Shop
from panels_support import TARGETS, hurried
from poolwatch import watch
from poolwatch.catalog import PREFIX
from poolwatch.demo.servers import MariaDB, Prometheus, free_port, poll
from proxies import Proxy
from support import served

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from poolwatch import Watch
    from poolwatch.snapshot import PoolSnapshot

JOB = "shop"
PATIENCE = 20.0
RULES = (*rules.alerting(DEFAULT), *rules.serving(DEFAULT), *rules.recorded(DEFAULT))
# Longer than the tests take, so that every counter's first sample in it is 0: then the quotient of two rates is that
# of the events, whatever Prometheus extrapolates.
RATE_MINUTES = 30


class Stage:
    """Does things to pools, in their event loop, and asks what the panels show. For use outside that loop."""

    def __init__(self, portal: BlockingPortal, mariadb: MariaDB, registry: CollectorRegistry) -> None:
        self.asked: set[str] = set()
        self.mariadb = mariadb
        self._portal = portal
        self._registry = registry
        self._engines: dict[Pool, AsyncEngine] = {}
        self._watches: dict[Pool, Watch] = {}
        self._taken: list[AsyncConnection] = []
        self._stack = ExitStack()
        self.proxies: dict[Pool, Proxy] = {}
        self.shop = Shop(self._named, registry)

    def _named(self, name: str) -> AsyncEngine:
        (engine,) = (engine for pool, engine in self._engines.items() if pool.name == name)
        return engine

    def open(self, pool: Pool) -> None:
        """Make the engine of *pool* and watch it."""
        port = self.mariadb.port if pool.reachable else free_port()
        if pool.proxied:
            self.proxies[pool] = self._stack.enter_context(Proxy(self.mariadb))
            port = self.proxies[pool].port
        engine = create_async_engine(f"mysql+aiomysql://app:app@127.0.0.1:{port}/app", **pool.options)
        self._engines[pool] = engine

        @event.listens_for(engine.sync_engine, "connect")
        def limit(dbapi: Any, _record: object) -> None:
            cursor = dbapi.cursor()
            cursor.execute(f"SET SESSION wait_timeout = {pool.wait_timeout}")
            cursor.close()

        self._watches[pool] = watch(engine, name=pool.name, registry=self._registry, **pool.watching)

    def end(self) -> None:
        """Close every connection."""
        self.give_back(self._taken)
        for pool, watched in self._watches.items():
            self._portal.call(self._engines[pool].dispose)
            watched.close()
        self._engines.clear()
        self._taken.clear()
        self._portal.call(gc.collect)
        self._stack.close()

    def attach(self, prometheus: Prometheus, instance: str) -> None:
        """Ask *prometheus*, which scrapes *instance*, from now on; returns when it has seen every pool."""
        self.prometheus = prometheus
        self._target = {"job": JOB, "instance": instance}
        self.scraped()

    # What happens to pools

    def do(self, act: Callable[[AsyncEngine], Awaitable[Any]], pool: Pool) -> Any:
        """Return what ``act(engine)`` returns."""
        return self._portal.call(act, self._engines[pool])

    def begin(self, act: Callable[[AsyncEngine], Awaitable[Any]], pool: Pool) -> Future[Any]:
        """Start ``act(engine)`` as a task; cancelling the future cancels it."""
        return self._portal.start_task_soon(act, self._engines[pool])

    def take(self, pool: Pool, count: int = 1) -> list[AsyncConnection]:
        """Check out *count* connections."""

        async def take(engine: AsyncEngine) -> list[AsyncConnection]:
            return [await engine.connect() for _ in range(count)]

        connections: list[AsyncConnection] = self.do(take, pool)
        self._taken += connections
        return connections

    def give_back(self, connections: Sequence[AsyncConnection]) -> None:
        """Return them to their pool."""
        for connection in connections:
            self._portal.call(connection.close)

    def ask_for(self, method: str, path: str, pool: Pool) -> Future[httpx.Response]:
        """Start a request that uses *pool*."""
        url = f"http://{self._target['instance']}{path}"

        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
                return await client.request(method, url, params={"pool": pool.name})

        return self._portal.start_task_soon(ask)

    def let_go(self) -> None:
        """End the requests that hold a connection, and give back what others kept."""
        self._portal.call(self.shop.release.set)
        self.give_back(self.shop.kept)
        self.shop.kept.clear()

    def identify(self, connection: AsyncConnection) -> int:
        """Return the id that *connection* has on the server."""

        async def identify() -> int:
            found: int = (await connection.execute(text("SELECT CONNECTION_ID()"))).scalar_one()
            return found

        return self._portal.call(identify)

    def use(self, pool: Pool, count: int = 1) -> list[int]:
        """Use *count* connections at once and give them back; return their ids on the server."""

        async def use(engine: AsyncEngine) -> list[int]:
            connections = [await engine.connect() for _ in range(count)]
            ids = [(await each.execute(text("SELECT CONNECTION_ID()"))).scalar_one() for each in connections]
            for each in connections:
                await each.close()
            return ids

        ids: list[int] = self.do(use, pool)
        return ids

    def use_and_kill(self, pool: Pool, count: int = 1) -> None:
        """Leave *count* idle connections that the server has closed, and wait until the event loop knows."""
        for each in self.use(pool, count):
            self.mariadb.kill(each)
        assert poll(lambda: self.snapshot(pool).connections["dead"] == count, seconds=PATIENCE)

    def pass_time(self, pool: Pool, seconds: float) -> None:
        """Let *seconds* pass for the connections of *pool*, in the library's books and in SQLAlchemy's."""

        def pass_time() -> None:
            inside: Any = self._engines[pool].pool
            # What was opened after the pool was invalidated stays younger than that.
            inside._invalidate_time -= seconds
            for slot in self._watches[pool]._ledger.slots.values():
                slot.opened_at -= seconds
                record: Any = slot.record()
                record.starttime -= seconds
                for moment in ("opened", "active", "returned", "held"):
                    reading = getattr(slot, moment)
                    if reading is not None:
                        setattr(slot, moment, reading - seconds)

        self._portal.call(pass_time)

    def snapshot(self, pool: Pool) -> PoolSnapshot:
        """Return the library's own view."""
        return self._portal.call(self._watches[pool].snapshot)

    # What the panels and the alerts show

    def scraped(self) -> None:
        """Return when Prometheus has scraped everything once more."""
        fresh = f"count(timestamp({PREFIX}size) > {time.time()})"
        assert poll(lambda: self._rows(fresh) == [({}, len(self._watches))], seconds=PATIENCE), "no further scrape"

    def ask(self, panel: str, *pools: Pool, around: str = "{}") -> dict[str, float]:
        """Return what the query ``"title letter"`` shows of *pools* (default: all), inside the expression *around*.

        By the values of the labels other than the target's, joined in the order of the labels' names.
        """
        self.asked.add(panel)
        names = "|".join(pool.name for pool in pools)
        values = {
            "cluster": ".*",
            "namespace": ".*",
            "job": ".+",
            "instance": ".+",
            "pool": f"({names})" if pools else ".+",
            "__rate_interval": f"{RATE_MINUTES}m",
            "__range": f"{RATE_MINUTES}m",
            "__range_s": str(RATE_MINUTES * 60),
            "detail": self._target["instance"],
        }
        target = TARGETS[panel]
        shown = self._rows(around.format(re.sub(r"\$([a-z_]\w*)", lambda found: values[found[1]], target["expr"])))
        for labels, _ in shown:
            # The target has no labels around job, which are optional.
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named - set(DEFAULT.labels) <= labels.keys()
        return _by_label_values(shown)

    def one(self, panel: str, *pools: Pool, around: str = "{}") -> float:
        """Return the only value that *panel* shows."""
        (value,) = self.ask(panel, *pools, around=around).values()
        return value

    def until(self, expected: Mapping[str, float], panel: str, *pools: Pool) -> dict[str, float]:
        """Return what *panel* shows as soon as that is *expected*, and in the end whatever it is."""
        shown: dict[str, float] = {}

        def reached() -> bool:
            nonlocal shown
            shown = self.ask(panel, *pools)
            return shown == expected

        poll(reached, seconds=PATIENCE)
        return shown

    def raised(self, panel: str, *pools: Pool) -> set[str]:
        """Return what *panel* shows to have happened at all; the rest of what it shows is exactly 0."""
        shown = self.ask(panel, *pools)
        assert shown
        # What happened once in the whole window is the least that can have happened.
        assert all(value == 0 or value * RATE_MINUTES >= 1 for value in shown.values())
        return {key for key, value in shown.items() if value != 0}

    def firing(self, alert: str, *labels: str) -> set[str]:
        """Return the values of *labels* with which *alert* fires, joined."""
        rows = self._rows(f'ALERTS{{alertname="{alert}", alertstate="firing"}}')
        return {" ".join(values[label] for label in labels) for values, _ in rows}

    def raw(self, family: str, pool: Pool) -> dict[str, float]:
        """Return the values of *family* that are not 0, as scraped."""
        return self.asked_for(f'{PREFIX}{family}{{pool="{pool.name}"}} != 0')

    def asked_for(self, expression: str) -> dict[str, float]:
        """Return what *expression* gives, by the values of the labels other than the target's."""
        return _by_label_values(self._rows(expression))

    def _rows(self, expression: str) -> list[tuple[dict[str, str], float]]:
        rows = self.prometheus.query(expression)
        for labels, value in rows:
            assert not isnan(value)
            assert {name: labels[name] for name in self._target.keys() & labels} == {
                name: value for name, value in self._target.items() if name in labels
            }
        return rows


def _by_label_values(rows: list[tuple[dict[str, str], float]]) -> dict[str, float]:
    shown = {
        " ".join(labels[name] for name in sorted(labels) if name not in {"__name__", "job", "instance"}): value
        for labels, value in rows
    }
    assert len(shown) == len(rows)
    return shown


@contextmanager
def staged(mariadb: MariaDB, pools: Sequence[Pool]) -> Iterator[Stage]:
    """Serve an application with *pools*, all in one event loop of another thread, and let a Prometheus scrape it."""
    registry = CollectorRegistry()
    port = free_port()
    with ExitStack() as stack:
        # Of those that leaked, the server does not hear: the next module counts its own there.
        stack.callback(mariadb.query, "KILL USER app")
        portal = stack.enter_context(start_blocking_portal())
        stage = Stage(portal, mariadb, registry)
        app = stage.shop.app
        stack.callback(stage.end)
        for pool in pools:
            portal.call(stage.open, pool)
        stack.enter_context(served(portal, app, port))
        instance = f"127.0.0.1:{port}"
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "rules.yml"
        file.write_text(groups_text(hurried(RULES), DEFAULT))
        stage.attach(stack.enter_context(Prometheus({JOB: instance}, rules=(file,))), instance)
        yield stage
