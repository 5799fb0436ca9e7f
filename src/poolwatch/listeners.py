"""SQLAlchemy's pool, engine and dialect events, turned into entries of a ledger.

What fires when, and what may be ``None``, is SQLAlchemy's ``PoolEvents``; the order of events in odd situations was
measured on 2.0 and 2.1. Every listener is total: an exception in one would destroy a healthy connection, fail the
caller's query or lose a place in the pool for ever.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, exc
from sqlalchemy.pool import ConnectionPoolEntry, StaticPool

from poolwatch import privates
from poolwatch.activity import ActivityListeners
from poolwatch.asking import LimitQuestion
from poolwatch.closing import ClosingListeners
from poolwatch.drivers import ping_works
from poolwatch.hotpath import checkin_listener, checkout_listener
from poolwatch.pings import Pings
from poolwatch.records import settle, slot_for
from poolwatch.trouble import describe
from poolwatch.unreturned import found

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.engine import Dialect
    from sqlalchemy.engine.interfaces import DBAPIConnection

    from poolwatch.ledger import Ledger
    from poolwatch.losses import Losses
    from poolwatch.slot import Slot

# The attempt to connect that is under way in this context; set and cleared inside one pool.connect().
dialing: ContextVar[Slot | None] = ContextVar("poolwatch.dialing", default=None)


class PoolListeners:
    """Feeds one engine's events into a ledger.

    Args:
        ledger: Where events are booked.
        dialect: The engine's.
        settings: Its pool's.
        losses: Where connections are booked that were found lost.
        timed: ``pool.connect()`` is timed and books the beginning of holds; otherwise the ``checkout`` event does.

    Attributes:
        question: Asks the server for each session's limits, once, at the connection's first checkout.
    """

    def __init__(
        self,
        ledger: Ledger,
        dialect: Dialect,
        settings: privates.PoolSettings,
        losses: Losses,
        *,
        timed: bool,
    ) -> None:
        self._ledger = ledger
        self._clock = ledger.clock
        self._dialect = dialect
        self._settings = settings
        # The slot of a StaticPool's latest connection.
        self._only: Slot | None = None
        # PEP 249 asks for it; what stands in for a driver or a dialect in somebody's tests may lack it.
        driver = getattr(dialect, "dbapi", None)
        errors: tuple[type[BaseException], ...] = (getattr(driver, "Error", exc.DBAPIError),)
        self.question = LimitQuestion(ledger, dialect, errors, losses)
        self._pings = Pings(ledger, dialect, errors, losses)
        activity = ActivityListeners(ledger, dialect, resets=settings.resets)
        closing = ClosingListeners(ledger, settings, errors, losses)
        handlers: dict[str, Callable[..., None]] = {
            "do_connect": self.on_do_connect,
            "connect": self.on_connect,
            "invalidate": closing.on_invalidate,
            "soft_invalidate": closing.on_soft_invalidate,
            "close": closing.on_close,
            "detach": self.on_detach,
            "handle_error": closing.on_handle_error,
            "before_cursor_execute": activity.on_before_cursor_execute,
            "after_cursor_execute": activity.on_after_cursor_execute,
            "commit": activity.on_commit,
            "rollback": activity.on_rollback,
        }
        if activity.marks_resets:
            handlers["reset"] = activity.on_reset
        self._doors = {name: self._door(name, handler) for name, handler in handlers.items()} | {
            "checkout": checkout_listener(ledger, self.first_checkout, pre_ping=settings.pre_ping, timed=timed),
            "checkin": checkin_listener(ledger, self.odd_checkin, resets=activity.marks_returns),
        }

    @property
    def is_async(self) -> bool:
        """Whether the driver needs an event loop."""
        return self._dialect.is_async

    def attach(self, engine: Engine) -> None:
        """Listen on *engine*."""
        for name, door in self._doors.items():
            # First, so that a connection is in the books before a listener of the application's refuses it.
            event.listen(engine, name, door, insert=name == "connect")
        self._pings.attach()

    def detach(self, engine: Engine) -> None:
        """Stop listening on *engine*."""
        self._pings.detach()
        for name, door in self._doors.items():
            if event.contains(engine, name, door):
                event.remove(engine, name, door)

    def adopt(self, record: ConnectionPoolEntry) -> Slot:
        """Book a connection that was opened before we listened; when it was last active is not known."""
        ledger = self._ledger
        slot = slot_for(record, self._ledger)
        ledger.opened(slot, privates.established_at(record))
        slot.active = None
        slot.fresh = False
        slot.pings = ping_works(self._dialect)
        return slot

    def _door(self, name: str, handler: Callable[..., None]) -> Callable[..., None]:
        trouble = self._ledger.trouble

        def door(*args: Any) -> None:
            try:
                handler(*args)
            except Exception as error:  # noqa: BLE001
                trouble(describe(name, error))

        return door

    # Opening

    def on_do_connect(self, _dialect: Dialect, record: ConnectionPoolEntry | None, _args: Any, _kw: Any) -> None:
        """Begin to time an attempt to connect.

        Not fired for a custom creator, nor after a listener of the application's that made the connection itself.
        """
        # Whoever calls a pool's creator by hand may pass nothing, or something of their own.
        if not isinstance(record, ConnectionPoolEntry):
            return
        slot = slot_for(record, self._ledger)
        settle(slot, self._ledger)
        slot.dialing = self._clock()
        dialing.set(slot)

    def on_connect(self, _dbapi: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        """Book a connection that was established; SQLAlchemy may still fail to set it up."""
        ledger, slot = self._ledger, slot_for(record, self._ledger)
        settle(slot, self._ledger)
        began, slot.dialing = slot.dialing, None
        dialing.set(None)
        if began is not None:
            ledger.connects.observe(self._clock() - began)
        if isinstance(slot.pool(), StaticPool):
            # It makes a new record where others connect theirs again.
            last, self._only = self._only, slot
            if last is not None and last.pool() is slot.pool():
                slot.replaces = last.replaces if last.opened is None else last.dropped
        ledger.opened(slot, ledger.wall())

    # Handing out

    def first_checkout(self, dbapi: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        """Ask for the session's limits when its connection is handed out for the first time.

        Raises:
            DisconnectionError: The question found the connection lost; SQLAlchemy replaces it and dispatches again.
        """
        info = record.record_info
        slot: Slot | None = None if info is None else info.get(self._ledger.key)
        if slot is None or slot.opened is None:
            slot = self.adopt(record)
        if self._settings.pre_ping and not slot.fresh:
            slot.active = self._clock()
        slot.fresh = False
        slot.pings = ping_works(self._dialect)
        self.question.ask(slot, dbapi)

    # Giving back

    def odd_checkin(self, slot: Slot, dbapi: DBAPIConnection | None, held: float | None) -> None:
        """Book a return that the garbage collector made, or one without a connection: lost, or never connected.

        *held*: since when it was out; ``None`` if it ended no hold, when the last caller's proxy may be long gone.
        """
        if held is not None and slot.proxy() is None:
            # On a sync engine, a connection that was collected comes back as if it had been returned.
            self._ledger.count("leaks_total")
            found(self._ledger, slot, held)
        if dbapi is None:
            settle(slot, self._ledger)
            slot.dialing = slot.returned = None
            # Lost while it was being set up: that fires no close.
            self._ledger.closed(slot, "failed")

    def on_detach(self, _dbapi: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        """Book a connection that leaves the pool for good: detached, or (async engines) leaked."""
        slot = slot_for(record, self._ledger)
        # On a sync engine a leaked one comes back instead, and another thread may have had the record meanwhile.
        serial, leaked = slot.serial, self.is_async and slot.proxy() is None
        if leaked:
            self._ledger.count("leaks_total")
            if slot.held is not None:
                found(self._ledger, slot, slot.held)
        # Else another thread, which got the record before this event fired, has connected it again and booked this.
        if record.dbapi_connection is None:
            self._ledger.lost(slot, "leaked" if leaked else "detached", serial)
