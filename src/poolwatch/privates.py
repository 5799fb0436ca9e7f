"""SQLAlchemy names that begin with an underscore, or stand on a private class: all that this library uses, here.

Each was read in SQLAlchemy 2.0.31 and 2.1.9 (``pool/base.py``, ``pool/impl.py``, ``engine/base.py``) and has no public
equivalent. A test fails when one of them goes away.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import inf, nextafter
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import AssertionPool, NullPool, QueuePool, SingletonThreadPool, StaticPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.pool import ConnectionPoolEntry, Pool


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How a pool was set up; it does not change while the pool lives.

    Attributes:
        size: ``pool_size``; ``inf`` where it is 0, SQLAlchemy's "unlimited"; 0 for NullPool.
        limit: Most connections it opens at once; ``inf`` if unlimited.
        recycle: ``pool_recycle`` in seconds; ``inf`` when off.
        timeout: ``pool_timeout`` in seconds; ``inf`` when callers never queue or wait for ever.
        pre_ping: ``pool_pre_ping``.
        lifo: ``pool_use_lifo``.
        resets: The pool itself sends something when a connection comes back (``pool_reset_on_return``).
        queues: Callers queue while it is at its limit, if it has one.
    """

    size: float
    limit: float
    recycle: float
    timeout: float
    pre_ping: bool
    lifo: bool
    resets: bool
    queues: bool


def settings(pool: Pool) -> PoolSettings:
    """Read the settings of *pool*, of any class."""
    size = limit = timeout = inf
    lifo = False
    if isinstance(pool, QueuePool):
        size = pool.size() or inf
        # pool_size=0 makes SQLAlchemy set this to -1 too.
        overflow: int = pool._max_overflow  # noqa: SLF001
        limit = inf if overflow < 0 else size + overflow
        # SQLAlchemy takes text too, as the environment has it, until somebody waits.
        wait: float | str | None = pool._timeout  # noqa: SLF001
        timeout = inf if wait is None else float(wait)
        lifo = bool(pool._pool.use_lifo)  # noqa: SLF001
    elif isinstance(pool, NullPool):
        size = 0
    elif isinstance(pool, (StaticPool, AssertionPool)):
        size = limit = 1
    elif isinstance(pool, SingletonThreadPool):
        size = limit = pool.size
    recycle: float = pool._recycle  # noqa: SLF001
    return PoolSettings(
        size=size,
        limit=limit,
        recycle=recycle if recycle > -1 else inf,
        timeout=timeout,
        pre_ping=bool(pool._pre_ping),  # noqa: SLF001
        lifo=lifo,
        resets=getattr(pool._reset_on_return, "name", None) != "reset_none",  # noqa: SLF001
        queues=isinstance(pool, QueuePool),
    )


# A C function, because every checkout calls it: overflow() is a Python method.
overflow = attrgetter("_overflow")


def most_overflow(pool: Pool) -> float:
    """Return the ``overflow`` at which callers of *pool* begin to queue; ``inf`` if they never do."""
    if not isinstance(pool, QueuePool) or settings(pool).limit == inf:
        return inf
    most: int = pool._max_overflow  # noqa: SLF001
    return most


def root(engine: Engine) -> Engine:
    """Return the engine that an ``execution_options()`` clone was made from; any other engine itself.

    A listener on a clone misses the root's statements and its dispose.
    """
    while (parent := getattr(engine, "_proxied", None)) is not None:
        engine = parent
    return engine


def pool_of(record: ConnectionPoolEntry) -> Pool:
    """Return the pool object that *record* belongs to; ``engine.pool`` may be a later one."""
    pool: Pool = record._ConnectionRecord__pool  # type: ignore[attr-defined] # noqa: SLF001
    return pool


def established_at(record: ConnectionPoolEntry) -> float:
    """Return the Unix time at which SQLAlchemy began to establish *record*'s connection."""
    started: float = record.starttime  # type: ignore[attr-defined]
    return started


def retirement(record: ConnectionPoolEntry) -> str | None:
    """Return why the next checkout of *record* would replace its connection, ``None`` if it would not.

    The same tests in the same order, and by the same clock, as SQLAlchemy's own at checkout.
    """
    record_: Any = record
    pool: Any = pool_of(record)
    if -1 < pool._recycle < time.time() - record_.starttime:  # noqa: SLF001
        return "recycle"
    if pool._invalidate_time > record_.starttime:  # noqa: SLF001
        return "pool_invalidated"
    if record_._soft_invalidate_time > record_.starttime:  # noqa: SLF001
        return "soft_invalidated"
    return None


# The methods by which a pool, of any class, takes out a record for a checkout, or makes one, and closes a connection
# when all listeners to that have been called.
TAKE, CLOSE = "_do_get", "_close_connection"


def put_back(pool: Pool, record: ConnectionPoolEntry) -> None:
    """Give *pool* a *record* back that was taken out and that nobody has seen, without an event."""
    pool._return_conn(record)  # noqa: SLF001


def condemn(record: ConnectionPoolEntry) -> None:
    """Have the checkout that *record* was taken out for replace its connection.

    Like ``record.invalidate(soft=True)``, but for the event: a listener that raised would lose the pool's place.
    """
    record_: Any = record
    # The wall clock may have been set back since it was established, or not have moved.
    record_.starttime = min(record_.starttime, time.time() - 1)
    # Hardly later, or a clock that is set back now would have the next connection replaced too.
    record_._soft_invalidate_time = nextafter(record_.starttime, inf)  # noqa: SLF001


def is_fresh(record: ConnectionPoolEntry) -> bool:
    """Tell whether *record*'s connection was established and no checkout has got as far as its listeners since."""
    fresh: bool = record.fresh  # type: ignore[attr-defined]
    return fresh


def proxy_reference(record: ConnectionPoolEntry) -> Callable[[], object]:
    """Return the weak reference to what the caller of a checked-out *record* holds."""
    reference: Callable[[], object] = record.fairy_ref  # type: ignore[attr-defined]
    return reference


def condemns_others(record: ConnectionPoolEntry, pool: Pool) -> bool:
    """Tell whether invalidating *pool* for *record*'s loss would condemn connections that were not yet."""
    record_: Any = record
    pool_: Any = pool
    return bool(pool_._invalidate_time < record_.starttime)  # noqa: SLF001
