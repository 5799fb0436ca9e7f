"""``watch(engine)``: the one place that attaches to an engine and registers with a registry."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from math import isfinite
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Self

from prometheus_client import REGISTRY, CollectorRegistry
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from poolwatch import privates
from poolwatch.collector import PoolCollector
from poolwatch.errors import ArgumentError, ArgumentTypeError, ConflictError, MetricNameError, WatchClosedError
from poolwatch.ledger import Ledger
from poolwatch.hotpath import KEY, describe
from poolwatch.listeners import PoolListeners
from poolwatch.reader import PoolReader
from poolwatch.timing import TimedPool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from poolwatch.snapshot import PoolSnapshot

logger = logging.getLogger("poolwatch")


class Watch:
    """One watched pool; made by :func:`watch`, ended by :meth:`close` or by leaving its ``with`` block.

    Attributes:
        name: The value of the label ``pool``.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        name: str,
        options: Mapping[str, Any],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.name = name
        self.options = options
        self._engine = weakref.ref(engine)
        self._closed = False
        self._logged = False
        self._ledger = Ledger(clock=clock, wall=wall)
        self._timer = TimedPool(self._ledger, leave=self._detach)
        self._attach(engine)

    def __repr__(self) -> str:
        return f"<Watch {self.name!r}{' closed' if self._closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def engine(self) -> Engine | None:
        """The watched engine, a sync one; ``None`` once it was collected as garbage."""
        return self._engine()

    def snapshot(self) -> PoolSnapshot:
        """Return what the pool looks like now; asks neither the pool nor the server for a connection.

        Raises:
            WatchClosedError: This watch was closed, or its engine is gone.
        """
        engine = self._engine()
        if self._closed or engine is None:
            msg = f"pool {self.name!r} is no longer watched; call watch(engine) again"
            raise WatchClosedError(msg)
        snapshot, trouble = self._reader.read(engine)
        if trouble is not None and not self._logged:
            self._logged = True
            logger.error(
                "poolwatch: an error of its own was kept from the application, pool %r: %s. The figures may be off;"
                " please report it. Further ones are only counted.",
                self.name,
                trouble,
            )
        return snapshot

    def collect(self) -> PoolSnapshot | None:
        """Return a snapshot for a scrape; ``None`` if there is none to be had."""
        try:
            return self.snapshot()
        except WatchClosedError:
            return None
        except Exception as error:  # noqa: BLE001
            self._ledger.trouble(describe("snapshot", error))
            return None

    def close(self) -> None:
        """Stop listening, remove the series and give the pool its class back. A second call does nothing.

        Where callers are inside ``pool.connect()`` at this moment, the listeners stay until the last has left.
        """
        if self._closed:
            return
        self._closed = True
        _forget(self)
        if self._timer.stop():
            self._detach()

    def _attach(self, engine: Engine) -> None:
        pool = engine.pool
        try:
            self._timer.install(pool)
        except TypeError as error:
            logger.warning(
                "poolwatch: pool %r: the class of %s cannot be extended (%s), so pending checkouts, waits, failures and"
                " checkout durations are not exported",
                self.name,
                type(pool).__name__,
                error,
            )
        self._listeners = PoolListeners(
            self._ledger,
            engine.dialect,
            privates.settings(pool),
            server_limits=self.options["server_limits"],
            timed=self._timer.installed,
        )
        self._reader = PoolReader(
            self._ledger,
            inactivity_limit=self.options["inactivity_limit"],
            per_connection=self.options["per_connection"],
            timed=self._timer.installed,
        )
        self._listeners.attach(engine)
        for record in gc.get_referrers(pool):
            if isinstance(record, ConnectionPoolEntry) and record.dbapi_connection is not None:
                self._adopt(record)

    def _adopt(self, record: ConnectionPoolEntry) -> None:
        slot = self._listeners.adopt(record)
        if record.in_use:
            # How long it took to get is not known; the checkout is counted all the same.
            if self._timer.installed:
                self._ledger.checkouts.observe(0.0)
            else:
                self._ledger.count("checkouts_total")
            self._ledger.handed_out(slot, self._ledger.clock())

    def _detach(self) -> None:
        engine = self._engine()
        if engine is not None:
            self._listeners.detach(engine)
            self._timer.restore(engine.pool)
        for slot in list(self._ledger.slots.values()):
            record = slot.record()
            if record is not None and record.record_info is not None:
                record.record_info.pop(KEY, None)


_lock = threading.RLock()
_watches: list[Watch] = []
_collectors: weakref.WeakKeyDictionary[CollectorRegistry, PoolCollector] = weakref.WeakKeyDictionary()
_warned: set[tuple[str, str]] = set()


def watch(
    engine: Engine | AsyncEngine,
    *,
    name: str | None = None,
    inactivity_limit: float | None = None,
    server_limits: bool | None = None,
    per_connection: bool | None = None,
    registry: CollectorRegistry | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> Watch:
    """Watch *engine*'s connection pool and export it through *registry*.

    The key is the pool: an AsyncEngine, its sync engine and their ``execution_options()`` clones are one, and a second
    call returns the same :class:`Watch`. ``None`` means no opinion: the default, or what an earlier call said.

    The engine is held weakly; it must not be in use in another thread at this very moment, because SQLAlchemy's lists
    of listeners do not allow it.

    Args:
        engine: An Engine or AsyncEngine.
        name: The value of the label ``pool``. Default: ``pool_logging_name``, else the database's name, else
            ``default``. Where another live engine of this registry has it, ``-2`` and so on is added.
        inactivity_limit: Seconds after which something between here and the server drops a silent connection (a load
            balancer, a proxy), as you know it; the server's own limit is found without you.
        server_limits: Ask each session once for the server's own limit, at its first checkout; default true. Turn it
            off behind a pooler that answers for itself.
        per_connection: Export three more series for each connection; default false.
        registry: Default: prometheus_client's ``REGISTRY``.
        clock: Monotonic time in seconds.
        wall: Unix time in seconds.

    Raises:
        ArgumentTypeError: *engine* is no engine, or another argument has the wrong type.
        ArgumentError: A value that cannot be used.
        ConflictError: The pool is already watched with another value of an argument that was given.
        MetricNameError: *registry* already holds a metric of one of our names.
    """
    root = privates.root(_sync_engine(engine))
    given = _options(
        name=name,
        inactivity_limit=inactivity_limit,
        server_limits=server_limits,
        per_connection=per_connection,
        registry=registry,
    )
    with _lock:
        _watches[:] = [each for each in _watches if each.engine is not None]
        for existing in _watches:
            other = existing.engine
            if other is not None and other.pool is root.pool:
                _agree(existing, given)
                return existing
        options = {"server_limits": True, "per_connection": False, "registry": REGISTRY, "inactivity_limit": None}
        options |= given
        _register(options["registry"])
        made = Watch(
            root,
            name=_free_name(given.get("name") or _default_name(root), options["registry"]),
            options=options | {"name": given.get("name")},
            clock=clock,
            wall=wall,
        )
        _watches.append(made)
        return made


def watches(registry: CollectorRegistry) -> list[Watch]:
    """Return the open watches that are exported through *registry*."""
    with _lock:
        return [each for each in _watches if each.options["registry"] is registry and each.engine is not None]


def _forget(watch_: Watch) -> None:
    registry = watch_.options["registry"]
    with _lock:
        if watch_ in _watches:
            _watches.remove(watch_)
        if not watches(registry) and registry in _collectors:
            registry.unregister(_collectors.pop(registry))


def _register(registry: CollectorRegistry) -> None:
    if registry in _collectors:
        return
    held = weakref.ref(registry)

    def sources() -> list[Watch]:
        alive = held()
        return [] if alive is None else watches(alive)

    collector = PoolCollector(sources)
    try:
        registry.register(collector)
    except ValueError as error:
        msg = (
            f"the registry already holds a metric that poolwatch exports ({error}); unregister that one, or give"
            " watch() a CollectorRegistry of its own with registry="
        )
        raise MetricNameError(msg) from error
    _collectors[registry] = collector


def _sync_engine(engine: object) -> Engine:
    if isinstance(engine, AsyncEngine):
        return engine.sync_engine
    if isinstance(engine, Engine):
        return engine
    msg = (
        f"engine must be an Engine or AsyncEngine, got {type(engine).__name__}; pass what create_engine() or"
        " create_async_engine() returned"
    )
    raise ArgumentTypeError(msg)


def _options(**given: Any) -> dict[str, Any]:
    options = {key: value for key, value in given.items() if value is not None}
    kinds: dict[str, tuple[type, ...]] = {
        "name": (str,),
        "inactivity_limit": (int, float),
        "server_limits": (bool,),
        "per_connection": (bool,),
        "registry": (CollectorRegistry,),
    }
    for key, value in options.items():
        if not isinstance(value, kinds[key]) or (key == "inactivity_limit" and isinstance(value, bool)):
            wanted = " or ".join(kind.__name__ for kind in kinds[key])
            msg = f"{key} must be {wanted}, got {type(value).__name__}; leave it out for the default"
            raise ArgumentTypeError(msg)
    if options.get("name") == "":
        msg = "name must not be empty: it tells pools apart in every series; leave it out for the database's name"
        raise ArgumentError(msg)
    limit = options.get("inactivity_limit", 1.0)
    if not (isfinite(limit) and limit > 0):
        msg = f"inactivity_limit must be a positive number of seconds, got {limit!r}; leave it out if none is known"
        raise ArgumentError(msg)
    return options


def _agree(existing: Watch, given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        # Compared with what the operator asked for, or was given: a name may have got a number.
        if value != existing.options[key] and not (key == "name" and value == existing.name):
            if key == "registry":
                msg = f"pool {existing.name!r} is already watched in another registry; close that Watch first"
            else:
                msg = (
                    f"pool {existing.name!r} is already watched with {key}={existing.options[key]!r}, not {value!r};"
                    " give the same value, leave it out, or close that Watch first"
                )
            raise ConflictError(msg)


def _default_name(engine: Engine) -> str:
    logging_name: str | None = getattr(engine.pool, "logging_name", None)
    database = engine.url.database or ""
    if engine.dialect.name == "sqlite":
        database = PurePath(database).name.replace(":memory:", "")
    return logging_name or database or "default"


def _free_name(wanted: str, registry: CollectorRegistry) -> str:
    if wanted in {each.name for each in watches(registry)}:
        # Tests, reloads and factories leave engines behind that only the garbage collector still knows.
        gc.collect()
    taken = {each.name for each in watches(registry)}
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    if name != wanted and (wanted, name) not in _warned:
        _warned.add((wanted, name))
        logger.warning(
            "poolwatch: another live engine's pool is called %r, so this one is exported as %r; tell them apart with"
            " watch(engine, name=...)",
            wanted,
            name,
        )
    return name
