"""``watch(engine)``: the one place that registers pools, their names and their collector."""

from __future__ import annotations

import gc
import logging
import os
import threading
import weakref
from contextlib import suppress
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, CollectorRegistry

from poolwatch import arguments, privates
from poolwatch.attachment import Watch
from poolwatch.collector import PoolCollector
from poolwatch.errors import ConflictError, MetricNameError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from poolwatch.arguments import AnyEngine

logger = logging.getLogger("poolwatch")

_lock = threading.RLock()
_watches: list[Watch] = []
_collectors: weakref.WeakKeyDictionary[CollectorRegistry, PoolCollector] = weakref.WeakKeyDictionary()
_OPTIONS = ("name", "inactivity_limit", "server_limits", "guard", "per_connection")
_leaving: list[Watch] = []
_warned: set[tuple[str, str]] = set()


def watch(  # noqa: PLR0913
    engine: AnyEngine,
    *,
    name: str | None = None,
    inactivity_limit: float | None = None,
    server_limits: bool | None = None,
    guard: bool | None = None,
    per_connection: bool | None = None,
    registry: CollectorRegistry | None = None,
) -> Watch:
    """Watch *engine*'s connection pool and export it through *registry*.

    The key is the pool: an AsyncEngine, its sync engine and their ``execution_options()`` clones are one, and a second
    call returns the same :class:`Watch`. ``None`` means no opinion: the default, or what an earlier call said.

    The engine is held weakly. Call this before the engine is used: SQLAlchemy's lists of listeners must not change
    while another task or thread stands in a listener of this engine, such as one that awaits in ``connect``.

    Args:
        engine: An Engine or AsyncEngine.
        name: The value of the label ``pool``. Default: ``pool_logging_name``, else the database's name, else
            ``default``. Where another live engine of this registry has it, ``-2`` and so on is added.
        inactivity_limit: Seconds after which something between here and the server drops a silent connection (a load
            balancer, a proxy), as you know it; the server's own limit is found without you.
        server_limits: Ask each session once for the server's own limit, at its first checkout; default true. Turn it
            off behind a pooler that answers for itself.
        guard: Have each checkout look at its connection before anything is sent on it, and replace one that the peer
            has closed or whose inactivity has reached its limit, less 1 s or 2 % of it, whichever is more, but no more
            than half; default false.
        per_connection: Export three more series for each connection; default false.
        registry: Default: prometheus_client's ``REGISTRY``.

    Raises:
        ArgumentTypeError: *engine* is no engine, or another argument has the wrong type.
        ArgumentError: A value that cannot be used.
        ConflictError: The pool is already watched with another value of an argument that was given.
        MetricNameError: *registry* already holds a metric of one of our names.
    """
    root = privates.root(arguments.sync_engine(engine))
    given = arguments.options(
        name=name,
        inactivity_limit=inactivity_limit,
        server_limits=server_limits,
        guard=guard,
        per_connection=per_connection,
        registry=registry,
    )
    with _lock:
        _mind_forks()
        _watches[:] = [each for each in _watches if each.engine is not None]
        existing = _of_pool(root)
        if existing is not None:
            _agree(existing, given)
            return existing
        options = {**dict.fromkeys(_OPTIONS), "registry": REGISTRY, **given}
        _register(options["registry"])
        made = Watch(
            root,
            name=_free_name(options["name"] or _default_name(root), options["registry"]),
            options=options,
            forget=_forget,
            after=next((each for each in _leaving if each.leaving and each.engine is root), None),
        )
        _watches.append(made)
        return made


def watches(registry: CollectorRegistry) -> list[Watch]:
    """Return the open watches that are exported through *registry*."""
    with _lock:
        return [each for each in _watches if each.options["registry"] is registry and each.engine is not None]


@cache
def _mind_forks() -> None:
    """Have forked children begin anew, from the first watch on; where a platform forks."""
    if hasattr(os, "register_at_fork"):
        # Held meanwhile, so that the child finds neither a lock that nobody frees nor half a list.
        os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_in_child)


def _in_child() -> None:
    try:
        for each in (*_leaving, *_watches):
            each.forked()
        _leaving.clear()
    finally:
        # A server that forks in C may call the child's half only.
        with suppress(RuntimeError):
            _lock.release()


def _of_pool(engine: Engine) -> Watch | None:
    for each in _watches:
        other = each.engine
        if other is not None and other.pool is engine.pool:
            return each
    return None


def _forget(watch_: Watch) -> None:
    registry = watch_.options["registry"]
    with _lock:
        _leaving[:] = [each for each in (*_leaving, watch_) if each.leaving]
        if watch_ in _watches:
            _watches.remove(watch_)
        if not watches(registry) and registry in _collectors:
            # Somebody may have emptied the registry before.
            with suppress(KeyError):
                registry.unregister(_collectors.pop(registry))


def _register(registry: CollectorRegistry) -> None:
    if registry in _collectors:
        # Again, if somebody has emptied the registry since; else it says that the names are taken, by us.
        with suppress(ValueError):
            registry.register(_collectors[registry])
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


def _agree(existing: Watch, given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        # Compared with what the operator asked for, or was given: a name may have got a number.
        if existing.options[key] not in (None, value) and not (key == "name" and value == existing.name):
            if key == "registry":
                msg = (
                    f"pool {existing.name!r} is already watched in another registry; give the same registry=, or close"
                    " that Watch first"
                )
            else:
                msg = (
                    f"pool {existing.name!r} is already watched with {key}={existing.options[key]!r}, not {value!r};"
                    " give the same value, leave it out, or close that Watch first"
                )
            raise ConflictError(msg)
    if given.get("name", existing.name) != existing.name and existing.options["name"] is None:
        existing.name = _free_name(given["name"], existing.options["registry"])
    existing.adjust({key: value for key, value in given.items() if existing.options[key] is None})


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
