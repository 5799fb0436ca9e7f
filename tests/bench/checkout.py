"""What watching costs a checkout and checkin, in a request too, and a statement, beside two empty listeners each.

And what the guard adds. The connections cost nothing. Rounds of all variants alternate and the fastest of each counts,
so that a busy machine slows them alike. Then a million checkouts, with the process's memory before and after. Exits 1
over a bound.
"""

from __future__ import annotations

import resource
import sqlite3
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.pool import QueuePool

from poolwatch import watch
from poolwatch.requests import Account, Terms, current

if TYPE_CHECKING:
    from collections.abc import Callable

BOUND = 1.6
MILLION = 1_000_000
# One backlog of 10,000 floats for each histogram that a checkout observes.
GROWTH = 3_000
ROUNDS = 60
CYCLES = 2_000
STATEMENT = text("SELECT 1")


class FreeConnection(sqlite3.Connection):
    """A connection whose rollback, the only thing a return sends, costs next to nothing."""

    def rollback(self) -> None:
        """Do nothing."""


def engine() -> Engine:
    """Return an engine on free connections."""
    return create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(":memory:", factory=FreeConnection, check_same_thread=False),
        poolclass=QueuePool,
    )


def bare(made: Engine) -> None:
    """Leave the engine as it is."""


def two_listeners(made: Engine) -> None:
    """Listen to checkout and checkin, and to statements before and after, and do nothing."""

    def on_checkout(_dbapi: Any, _record: Any, _proxy: Any) -> None:
        pass

    def on_checkin(_dbapi: Any, _record: Any) -> None:
        pass

    def on_statement(*_: Any) -> None:
        pass

    event.listen(made, "checkout", on_checkout)
    event.listen(made, "checkin", on_checkin)
    event.listen(made, "before_cursor_execute", on_statement)
    event.listen(made, "after_cursor_execute", on_statement)


def watched(made: Engine) -> None:
    """Watch the engine."""
    watch(made, registry=CollectorRegistry())


def guarded(made: Engine) -> None:
    """Watch the engine, with a guard that knows a limit."""
    watch(made, guard=True, inactivity_limit=28800, registry=CollectorRegistry())


def cycle_seconds(made: Engine) -> float:
    """Return the seconds that one round of checkouts and checkins takes."""
    connect = made.pool.connect
    began = time.perf_counter()
    for _ in range(CYCLES):
        connect().close()
    return time.perf_counter() - began


def request_seconds(made: Engine) -> float:
    """Return the seconds that one round of checkouts and checkins takes in a request."""
    account = Account(object(), Terms(lambda _: ("GET", "/items/{id}"), 100))
    current.set(account)
    seconds = cycle_seconds(made)
    current.set(None)
    account.ended = True
    return seconds


def statement_seconds(made: Engine) -> float:
    """Return the seconds that one round of statements takes."""
    with made.connect() as connection:
        execute = connection.execute
        began = time.perf_counter()
        for _ in range(CYCLES):
            execute(STATEMENT)
        return time.perf_counter() - began


def resident_kilobytes() -> int:
    """Return the memory that this process has in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def compare(what: str, seconds: Callable[[Engine], float], rounds: int) -> float:
    """Print what *what* costs in each variant, of which *seconds* runs a round; return the worst ratio."""
    variants: dict[str, Callable[[Engine], None]] = {
        "bare": bare,
        "two empty listeners": two_listeners,
        "watched": watched,
        "guarded": guarded,
    }
    engines = {name: engine() for name in variants}
    for name, prepare in variants.items():
        prepare(engines[name])
    fastest = dict.fromkeys(variants, float("inf"))
    for _ in range(rounds):
        for name, made in engines.items():
            fastest[name] = min(fastest[name], seconds(made) / CYCLES * 1e6)
    watching, guarding = (fastest[name] / fastest["two empty listeners"] for name in ("watched", "guarded"))
    say(f"{what}: " + ", ".join(f"{name} {microseconds:.2f} µs" for name, microseconds in fastest.items()))
    say(
        f"watched / two empty listeners = {watching:.2f}, guarded {guarding:.2f}, at most {BOUND} is allowed;"
        f" guarded / watched = {guarding / watching:.2f}"
    )
    return max(watching, guarding)


def grow() -> int:
    """Print how much memory a million checkouts leave behind that nobody reads; return it in kilobytes."""
    made = engine()
    watched(made)
    request_seconds(made)
    before = resident_kilobytes()
    for _ in range(MILLION // CYCLES):
        request_seconds(made)
    growth = resident_kilobytes() - before
    say(f"a million checkouts: {growth} kB more resident memory, at most {GROWTH} is allowed")
    return growth


def say(line: str) -> None:
    """Print *line*."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    ratios = [
        compare("checkout and checkin", cycle_seconds, ROUNDS),
        compare("the same in a request", request_seconds, ROUNDS),
        compare("a statement", statement_seconds, ROUNDS // 3),
    ]
    sys.exit(max(ratios) > BOUND or grow() > GROWTH)
