"""A pytest plugin that watches every engine and every pool that SQLAlchemy's own tests make, and checks the books.

What it saw goes to the file ``--watched``.
"""

from __future__ import annotations

import functools
import gc
import inspect
import json
import sqlite3
import sys
import traceback
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import URL, CreateEnginePlugin, Engine, make_url
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import AssertionPool, NullPool, Pool, QueuePool, SingletonThreadPool, StaticPool
from sqlalchemy.util import langhelpers

from poolwatch import Watch, watch
from support import assert_books

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolwatch.ledger import Ledger

_POOLS: tuple[type[Pool], ...] = (Pool, QueuePool, NullPool, SingletonThreadPool, StaticPool, AssertionPool)
# Where the class of a pool that a test made itself keeps the engine we made for it, and its watch.
_OWNER = "upstream_owner"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the file's name."""
    parser.addoption("--watched", type=Path, required=True)


class PlainDialect(DefaultDialect):
    """The dialect of pools that have no engine; nothing is known to ask its server for."""

    name = driver = "none"


class Attendance:
    """Watches what is made, looks after each test at what was made in it, and sums up."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ledgers: list[Ledger] = []
        self._fresh: list[weakref.ref[Watch]] = []
        self._alive: list[weakref.ref[Watch]] = []
        self._unbalanced: list[str] = []

    def attend(self, engine: Engine) -> Watch:
        """Watch *engine* in a registry of its own, so that names do not clash."""
        watched = watch(engine, guard=True, registry=CollectorRegistry())
        self._fresh.append(weakref.ref(watched))
        self._ledgers.append(watched._ledger)
        # Our own garbage must not bring a collection into a test that waits for one.
        gc.collect(0)
        return watched

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Scrape what the test made, and check the books of everything that is still there."""
        for reference in self._fresh:
            watched = reference()
            if watched is not None:
                generate_latest(watched.options["registry"])
        self._alive = [each for each in (*self._alive, *self._fresh) if self._balances(each(), nodeid)]
        self._fresh.clear()

    def _balances(self, watched: Watch | None, nodeid: str) -> bool:
        """Return whether to look at it again: it is still there, and its books were right."""
        snapshot = None if watched is None or watched.leaving else watched.collect()
        if watched is None or snapshot is None:
            return watched is not None and watched.leaving
        try:
            # Threads that a test left behind may still be inside.
            if not snapshot.pending_checkouts:
                assert_books(snapshot)
        except AssertionError as error:
            broken = traceback.extract_tb(error.__traceback__)[-1].line
            self._unbalanced.append(f"{nodeid}: {watched}: {broken}")
            return False
        return True

    def pytest_sessionfinish(self) -> None:
        """Write down how much was watched, and what went wrong."""
        read = [ledger.read() for ledger in self._ledgers]
        found = {
            "watches": len(read),
            "checkouts": sum(counts["checkouts_total",] for counts, _, _ in read),
            "internal_errors": sum(counts["internal_errors_total",] for counts, _, _ in read),
            "troubles": sorted({trouble for _, _, trouble in read if trouble is not None}),
            "unbalanced": self._unbalanced,
        }
        self._path.write_text(json.dumps(found))


def _watch_engines(attendance: Attendance) -> None:
    """Watch each engine at the end of ``create_engine()``, as a plugin that nobody has to name."""

    class Attendant(CreateEnginePlugin):
        def engine_created(self, engine: Engine) -> None:
            owned = getattr(type(engine.pool), _OWNER, None)
            if owned is not None:
                owned[1].close()
            attendance.attend(engine)

    original = URL._instantiate_plugins

    def with_attendant(self: URL, kwargs: Any) -> Any:
        url, plugins, kwargs = original(self, kwargs)
        return url, [*plugins, Attendant(url, {})], kwargs

    URL._instantiate_plugins = with_attendant  # type: ignore[method-assign]


def _watch_pools(attendance: Attendance) -> None:
    """Watch each pool that a test makes itself, by an engine that nobody uses."""
    dbapi: Any = sqlite3

    def attended(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def initialize(self: Pool, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            if sys._getframe(1).f_globals["__name__"].startswith("test."):
                engine = Engine(self, PlainDialect(dbapi=dbapi), make_url("sqlite://"))
                # On the class that watching gave the pool: tests compare the pool's own attributes.
                watched = attendance.attend(engine)
                setattr(type(self), _OWNER, (engine, watched))

        return initialize

    for kind in _POOLS:
        kind.__init__ = attended(kind.__init__)  # type: ignore[method-assign]
    # create_engine() reads from their signatures which of its arguments are a pool's.
    helpers: Any = langhelpers
    original = helpers._inspect_func_args
    helpers._inspect_func_args = lambda function: original(inspect.unwrap(function))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Begin before SQLAlchemy's own plugin makes its first engine."""
    attendance = Attendance(config.getoption("--watched"))
    config.pluginmanager.register(attendance)
    _watch_engines(attendance)
    _watch_pools(attendance)
