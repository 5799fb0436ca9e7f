"""What watching costs a checkout and checkin, side by side with two empty listeners, on connections that cost nothing.

Prints ratios of medians; rounds of all variants alternate, so that a busy machine slows them alike. Exits 1 over the
bound.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool, QueuePool

from poolwatch import watch

if TYPE_CHECKING:
    from collections.abc import Callable

BOUND = 1.6
ROUNDS = 60
CYCLES = 2_000


class FreeConnection(sqlite3.Connection):
    """A connection whose rollback, the only thing a return sends, costs next to nothing."""

    def rollback(self) -> None:
        """Do nothing."""


def engine(poolclass: type[Pool]) -> Engine:
    """Return an engine on free connections."""
    return create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(":memory:", factory=FreeConnection, check_same_thread=False),
        poolclass=poolclass,
    )


def bare(made: Engine) -> None:
    """Leave the engine as it is."""


def two_listeners(made: Engine) -> None:
    """Listen to checkout and checkin, and do nothing."""

    def on_checkout(_dbapi: Any, _record: Any, _proxy: Any) -> None:
        pass

    def on_checkin(_dbapi: Any, _record: Any) -> None:
        pass

    event.listen(made, "checkout", on_checkout)
    event.listen(made, "checkin", on_checkin)


def watched(made: Engine) -> None:
    """Watch the engine."""
    watch(made, registry=CollectorRegistry())


def cycle_seconds(pool: Pool) -> float:
    """Return the seconds that one round of checkouts and checkins takes."""
    connect = pool.connect
    began = time.perf_counter()
    for _ in range(CYCLES):
        connect().close()
    return time.perf_counter() - began


def main() -> int:
    """Measure and print; return the exit status."""
    variants: dict[str, Callable[[Engine], None]] = {
        "bare": bare,
        "two empty listeners": two_listeners,
        "watched": watched,
    }
    worst = 0.0
    for poolclass in (QueuePool, AsyncAdaptedQueuePool):
        engines = {name: engine(poolclass) for name in variants}
        for name, prepare in variants.items():
            prepare(engines[name])
        rounds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(ROUNDS):
            for name, made in engines.items():
                rounds[name].append(cycle_seconds(made.pool))
        medians = {name: statistics.median(times) / CYCLES * 1e6 for name, times in rounds.items()}
        ratio = medians["watched"] / medians["two empty listeners"]
        worst = max(worst, ratio)
        times = ", ".join(f"{name} {microseconds:.2f} µs" for name, microseconds in medians.items())
        print(f"{poolclass.__name__}: {times}; watched / two empty listeners = {ratio:.2f}")  # noqa: T201
    print(f"bound {BOUND}: {'kept' if worst <= BOUND else 'EXCEEDED'}")  # noqa: T201
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
