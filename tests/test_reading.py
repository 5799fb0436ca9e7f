"""What a reader meets that comes between two steps of somebody else's."""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event
from sqlalchemy.pool import QueuePool

from poolwatch import watch
from support import assert_books

if TYPE_CHECKING:
    from weakref import ref

    from prometheus_client import CollectorRegistry


def test_a_caller_who_leaves_meanwhile(registry: CollectorRegistry) -> None:
    """A checkout that ends between the reader's looking at it and at who is pending is counted once."""

    def create() -> sqlite3.Connection:
        return sqlite3.connect(":memory:", check_same_thread=False)

    engine = create_engine("sqlite://", poolclass=QueuePool, creator=create)
    watched = watch(engine, registry=registry)
    engine.raw_connection().close()
    arrived, go_on = threading.Event(), threading.Event()
    held: list[Any] = []

    @event.listens_for(engine, "checkout")
    def linger(*_: Any) -> None:
        arrived.set()
        go_on.wait()

    caller = threading.Thread(target=lambda: held.append(engine.raw_connection()))
    caller.start()
    arrived.wait()
    (slot,) = watched._ledger.slots.values()
    slot.pool = _Meanwhile(slot.pool, go_on, caller)  # type: ignore[assignment]
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert (2, 1) == (snapshot.checkouts_total, snapshot.connections["checked_out"])
    held.pop().close()


class _Meanwhile:
    """A slot's reference to its pool that lets *caller* end when it is asked the second time."""

    def __init__(self, reference: ref[Any], go_on: threading.Event, caller: threading.Thread) -> None:
        self._reference = reference
        self._go_on = go_on
        self._caller = caller
        self._asked = 0

    def __call__(self) -> object:
        """Return the pool."""
        self._asked += 1
        if self._asked == 2:
            self._go_on.set()
            self._caller.join()
        return self._reference()
