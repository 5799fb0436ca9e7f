"""Pool settings against what is known of the server and the path to it: what will fail some day, or costs for nothing.

Pure functions, one for each value of ``config_problem``'s label, named like it. A fact that is unknown makes no
problem, and a choice that somebody may have good reasons for is none: NullPool, ``pool_timeout=0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolwatch.privates import PoolSettings

# Seconds: below it HikariCP refuses a maximum lifetime; the shortest recycling that people are seen to choose is 60.
SHORTEST_RECYCLE = 30.0
# A recycling above this share of the limit is short because the limit is.
RECYCLE_SHARE = 0.25
# Seconds: nothing between a client and its server drops connections sooner, while a KILL finds many idle for less.
SHORTEST_HIDDEN_LIMIT = 10.0
# What dies above this share of a known limit has died of that, as the server's clock and ours may differ.
HIDDEN_SHARE = 0.9
# No instance has more; what says so is nonsense.
_MOST_PROCESSES = 10_000


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one pool.

    Attributes:
        settings: How it was set up.
        guard: A guard replaces doomed connections at checkout.
        sees_death: The driver can tell that an idle connection has ended.
        pings: Pre-ping notices a dead connection, as far as the event loops of open connections tell.
        asked: An open connection was handed out, and its session asked for limits if that was wanted and can be done.
        served: There is a server, and not a file in this process.
        idle_limit: Seconds of inactivity after which an idle connection is dropped: the smallest of
            ``inactivity_limit_seconds`` outside transactions; ``inf`` for never, ``None`` if unknown.
        fatal: ``shortest_fatal_inactivity_seconds``; ``None`` until seen, or if another connection survived longer.
        max_connections: The server's; ``None`` if unknown.
        processes: How many worker processes have a pool like this; ``None`` if unknown.
    """

    settings: PoolSettings
    guard: bool
    sees_death: bool
    pings: bool
    asked: bool
    served: bool
    idle_limit: float | None
    fatal: float | None
    max_connections: int | None
    processes: int | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem that a pool has.

    Attributes:
        check: The check that found it: a value of ``config_problem``'s label.
    """

    check: str


def find(facts: Facts) -> list[Finding]:
    """Return the problems that *facts* show, in the catalogue's order; empty if there is none."""
    return [Finding(name) for name, check in _CHECKS.items() if check(facts)]


def worker_processes(text: str | None) -> int | None:
    """Return the number that ``WEB_CONCURRENCY`` holds, *text*; ``None`` if it is not set or makes no sense."""
    try:
        number = int(text or "")
    except ValueError:
        return None
    return number if 0 < number <= _MOST_PROCESSES else None


def recycle_unprotected(facts: Facts) -> bool:
    """The idle limit is finite, and neither a guard nor a working pre-ping nor a shorter pool_recycle acts before it.

    A pool of size 0, NullPool, has no idle connection.
    """
    settings, limit = facts.settings, facts.idle_limit
    pinged = settings.pre_ping and facts.pings
    return (
        limit is not None
        and limit < inf
        and settings.size > 0
        and not (facts.guard or pinged or settings.recycle < limit)
    )


def recycle_churn(facts: Facts) -> bool:
    """pool_recycle is 0 (each checkout connects anew), or below 30 s and a quarter of the idle limit, if that is known.

    A pool of size 0, NullPool, never recycles.
    """
    settings, limit = facts.settings, facts.idle_limit
    far_below = limit is not None and settings.recycle < min(SHORTEST_RECYCLE, RECYCLE_SHARE * limit)
    return settings.size > 0 and (settings.recycle <= 0 or far_below)


def guard_and_pre_ping(facts: Facts) -> bool:
    """pool_pre_ping is on beside a guard that has replaced every connection known to have ended.

    Where the driver cannot tell which have, the ping is not for nothing.
    """
    return facts.guard and facts.sees_death and facts.settings.pre_ping


def pre_ping_broken(facts: Facts) -> bool:
    """pool_pre_ping is on, and with the driver and event loop of an open connection the ping's error escapes."""
    return facts.settings.pre_ping and not facts.pings


def lifo_tail(facts: Facts) -> bool:
    """pool_use_lifo leaves all but the busiest connections idle until their limit, and nothing protects (as above).

    SQLAlchemy's documentation asks for pre-ping or recycling beside it. A pool of size 1 has no tail.
    """
    return facts.settings.lifo and facts.settings.size > 1 and recycle_unprotected(facts)


def unlimited_overflow(facts: Facts) -> bool:
    """The pool is a queue, and max_overflow=-1 or pool_size=0 means that nobody ever queues."""
    return facts.settings.queues and facts.settings.limit == inf


def process_over_server(facts: Facts) -> bool:
    """The pool's limit, where it has one, is above the server's max_connections (``server_max_connections``)."""
    most = facts.max_connections
    return most is not None and most < facts.settings.limit < inf


def fleet_over_server(facts: Facts) -> bool:
    """The pool's limit, where it has one, times WEB_CONCURRENCY is above the server's max_connections."""
    most, limit = facts.max_connections, facts.settings.limit
    return most is not None and facts.processes is not None and limit < inf and most < facts.processes * limit


def limit_unknown(facts: Facts) -> bool:
    """Neither the server nor ``inactivity_limit=`` has told the limit, and nothing acts whatever it is.

    So it is with ``server_limits=False`` alone too: then nobody asks and nobody tells. With a working pre-ping no limit
    is needed, nor with a guard that sees what has ended; and a pool of size 0, NullPool, has no idle connection.
    """
    settings = facts.settings
    pinged = settings.pre_ping and facts.pings
    asked = facts.asked and facts.served and settings.size > 0
    return asked and facts.idle_limit is None and not ((facts.guard and facts.sees_death) or pinged)


def hidden_limit(facts: Facts) -> bool:
    """The shortest fatal inactivity is at least 10 s, and at most 0.9 of the idle limit, if that is known.

    It is only known while no connection of this process has survived longer.
    """
    fatal, limit = facts.fatal, facts.idle_limit
    return fatal is not None and fatal >= SHORTEST_HIDDEN_LIMIT and (limit is None or fatal <= HIDDEN_SHARE * limit)


def pool_cannot_queue(facts: Facts) -> bool:
    """Before a server stands a bounded pool at which nobody can wait: no queue, or one with a negative pool_timeout.

    StaticPool shares its connection among concurrent users, AssertionPool fails the second, SingletonThreadPool closes
    connections in use: they are for tests and SQLite. NullPool is unbounded; ``pool_timeout=0`` is a way to shed load.
    """
    settings = facts.settings
    return facts.served and settings.limit < inf and (not settings.queues or settings.timeout < 0)


_CHECKS: dict[str, Callable[[Facts], bool]] = {
    check.__name__: check
    for check in (
        recycle_unprotected,
        recycle_churn,
        guard_and_pre_ping,
        pre_ping_broken,
        lifo_tail,
        unlimited_overflow,
        process_over_server,
        fleet_over_server,
        limit_unknown,
        hidden_limit,
        pool_cannot_queue,
    )
}
