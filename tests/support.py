"""What several test modules say about a pool: the identities, and waiting for what is seen."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from sqlalchemy import text
from sqlalchemy.pool import QueuePool

from poolwatch.demo.servers import poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anyio.from_thread import BlockingPortal
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from sqlalchemy.pool import Pool, PoolProxiedConnection
    from starlette.types import ASGIApp

    from poolwatch import PoolSnapshot, Watch
    from poolwatch.demo.servers import MariaDB

DEADLINE = 20.0


def assert_books(snapshot: PoolSnapshot) -> None:
    """Assert the identities that a snapshot of a quiet pool owes, all but the one about the server."""
    checked_out = snapshot.connections["checked_out"]
    checkouts, durations = snapshot.checkouts_total, snapshot.checkout_duration_seconds
    assert checkouts == snapshot.hold_duration_seconds.count + checked_out
    assert snapshot.connects_total - sum(snapshot.closes_total.values()) == sum(snapshot.connections.values())
    assert sum(snapshot.reconnects_total.values()) <= snapshot.connects_total
    assert durations is not None
    assert snapshot.checkout_failures_total is not None
    assert durations.count == checkouts + snapshot.checkout_failures_total["timeout"]
    assert sum(snapshot.timeout_risk_connections.values()) == sum(snapshot.connections.values())
    assert sum(snapshot.route_checkouts_total.values()) == checkouts
    seconds, ended = sum(snapshot.route_hold_seconds_total.values()), snapshot.hold_duration_seconds.sum
    assert math.isclose(seconds, ended, abs_tol=1e-6) if not checked_out else seconds > ended - 1e-6
    if snapshot.route_connections:
        assert sum(snapshot.route_connections.values()) == checked_out
        assert sum(snapshot.route_unreturned_total.values()) == snapshot.unreturned_total
        waited = sum(snapshot.route_checkout_seconds_total.values())
        assert math.isclose(waited, durations.sum, abs_tol=1e-6)
    assert snapshot.pending_checkouts == 0
    assert snapshot.internal_errors_total == 0


async def assert_true_on(server: MariaDB, watched: Watch, *, beside: int = 0) -> PoolSnapshot:
    """Assert every identity, and that the server has this many connections of ours, less dead ones.

    *beside*: connections of ours that are no longer the pool's: detached, or lying in an abandoned pool.
    """
    snapshot = watched.snapshot()
    assert_books(snapshot)
    alive = sum(snapshot.connections.values()) - snapshot.connections["dead"] + beside
    # The server takes a moment to notice that a socket was closed.
    await until(lambda: len(server.connections()) == alive, f"{alive} connections on the server")
    return snapshot


class Tally:
    """Counts what callers of ``pool.connect()`` come to, by a class of its own beneath any watch's.

    Attributes:
        got: How many got a connection.
        failed: How many got none.
    """

    def __init__(self, pool: Pool) -> None:
        self.got = self.failed = 0
        base = type(pool)

        def connect(self_: Pool) -> PoolProxiedConnection:
            try:
                connection = base.connect(self_)
            except BaseException:
                self.failed += 1
                raise
            self.got += 1
            return connection

        # A dispose makes the next pool from its class.
        pool.__class__ = type(base.__name__, (base,), {"connect": connect})


class Stubborn(QueuePool):
    """A pool whose class cannot be replaced."""

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse."""
        if name == "__class__":
            msg = "not me"
            raise TypeError(msg)
        super().__setattr__(name, value)


class Reader:
    """Reads a pool that is in full use and asserts what is true even then."""

    def __init__(self, watched: Watch) -> None:
        self._watched = watched
        self._before: dict[str, float] = {}

    def __call__(self) -> None:
        """Nothing is negative and no counter goes back."""
        snapshot = self._watched.snapshot()
        assert min((*snapshot.connections.values(), *snapshot.timeout_risk_connections.values())) >= 0
        assert snapshot.pending_checkouts is not None
        assert snapshot.pending_checkouts >= 0
        now = dict(_counters(snapshot))
        assert {} == {name: value for name, value in now.items() if value < self._before.get(name, 0)}
        self._before = now


def _counters(snapshot: PoolSnapshot) -> Iterator[tuple[str, float]]:
    for name in type(snapshot).__dataclass_fields__:
        value: Any = getattr(snapshot, name)
        if name.endswith("_total") and isinstance(value, (int, float)):
            yield name, value
        elif name.endswith("_total"):
            yield from ((f"{name}{label}", number) for label, number in value.items())
        elif name.endswith(("duration_seconds", "lifetime_seconds")):
            yield f"{name}_count", value.count
            yield f"{name}_sum", value.sum


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for *condition*; an AssertionError names *what* never came."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        await asyncio.sleep(0.005)


async def run(connection: AsyncConnection, statement: str) -> object:
    """Run *statement* and return the first column of its first row."""
    return (await connection.execute(text(statement))).scalar()


async def use(engine: AsyncEngine, statement: str = "SELECT 1") -> object:
    """Check a connection out, run *statement*, give the connection back."""
    async with engine.connect() as connection:
        return await run(connection, statement)


async def fill(engine: AsyncEngine, connections: int, own_id: str = "SELECT CONNECTION_ID()") -> list[int]:
    """Leave *connections* idle in the pool; return their ids on the server, which the statement *own_id* asks for."""
    held = [await engine.connect() for _ in range(connections)]
    ids = [await run(each, own_id) for each in held]
    for each in held:
        await each.close()
    return [number for number in ids if isinstance(number, int)]


def moved(counts: object) -> dict[Any, int]:
    """Return the entries of a labelled counter that are not 0."""
    assert isinstance(counts, dict)
    return {key: value for key, value in counts.items() if value}


def age(watched: Watch, seconds: float) -> None:
    """Make every open connection *seconds* older by SQLAlchemy's own clock."""
    for slot in watched._ledger.slots.values():
        record = slot.record()
        if record is not None:
            record.starttime -= seconds


def quiet(watched: Watch, seconds: float) -> None:
    """Let the server have heard nothing from any connection for so long."""
    for slot in watched._ledger.slots.values():
        slot.active = watched._ledger.clock() - seconds


@contextmanager
def served(portal: BlockingPortal, app: ASGIApp, port: int, **options: Any) -> Iterator[None]:
    """Serve *app* with a real uvicorn in *portal*'s event loop; *options* are its own."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, **{"ws": "none", **options}))
    serving = portal.start_task_soon(server.serve)
    try:
        assert poll(lambda: server.started or serving.done())
        yield
    finally:
        server.should_exit = True
        serving.result(DEADLINE)
