"""The truth that books are held against: the connections that the drivers have open in this process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from databases import open_handles
from support import DEADLINE, assert_books

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolwatch import PoolSnapshot, Watch
    from poolwatch.demo.servers import MariaDB


def wait_for(condition: Callable[[], bool], what: str, pause: Callable[[float], object] = time.sleep) -> None:
    """Wait for *condition*, with a *pause* between attempts; an AssertionError names *what* never came."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        pause(0.005)


def assert_held(watched: Watch, *, beside: int = 0, held: Callable[[], int] = open_handles) -> PoolSnapshot:
    """Assert every identity, and that our drivers hold as many connections as the books say.

    *beside*: connections of ours that are no longer the pool's: detached, or lying in an abandoned pool.
    *held*: counts what a driver has open.
    """
    snapshot = watched.snapshot()
    assert_books(snapshot)
    found, booked = held(), sum(snapshot.connections.values()) + beside
    assert found == booked, f"{found} open, {booked} in the books"
    return snapshot


def assert_true(
    server: MariaDB, watched: Watch, *, beside: int = 0, pause: Callable[[float], object] = time.sleep
) -> PoolSnapshot:
    """Assert as :func:`assert_held` does, and that the server has all of those that are not seen dead."""
    snapshot = assert_held(watched, beside=beside)
    alive = sum(snapshot.connections.values()) - snapshot.connections["dead"] + beside
    # The server takes a moment to notice that a socket was closed.
    wait_for(lambda: len(server.connections()) == alive, f"{alive} connections on the server", pause)
    return snapshot
