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

from poolwatch import privates, reasons, server
from poolwatch.activity import ActivityListeners, slot_of
from poolwatch.hotpath import MEANT, checkin_listener, checkout_listener, describe
from poolwatch.ledger import Retirement, Slot

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.engine import Dialect
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import Pool

    from poolwatch.ledger import Ledger

# The attempt to connect that is under way in this context; set and cleared inside one pool.connect().
dialing: ContextVar[Slot | None] = ContextVar("poolwatch.dialing", default=None)


class PoolListeners:
    """Feeds one engine's events into a ledger.

    Args:
        ledger: Where events are booked.
        dialect: The engine's.
        settings: Its pool's.
        timed: ``pool.connect()`` is timed and books the beginning of holds; otherwise the ``checkout`` event does.

    Attributes:
        server_limits: Ask the server for each session's limits, once, at the connection's first checkout.
    """

    def __init__(
        self,
        ledger: Ledger,
        dialect: Dialect,
        settings: privates.PoolSettings,
        *,
        timed: bool,
    ) -> None:
        self._ledger = ledger
        self._clock = ledger.clock
        self._dialect = dialect
        self._settings = settings
        self.server_limits = True
        # The slot of a StaticPool's latest connection.
        self._only: Slot | None = None
        # PEP 249 asks for it; what stands in for a driver or a dialect in somebody's tests may lack it.
        driver = getattr(dialect, "dbapi", None)
        self._errors: tuple[type[BaseException], ...] = (getattr(driver, "Error", exc.DBAPIError),)
        activity = ActivityListeners(ledger, dialect)
        handlers: dict[str, Callable[..., None]] = {
            "do_connect": self.on_do_connect,
            "connect": self.on_connect,
            "invalidate": self.on_invalidate,
            "soft_invalidate": self.on_soft_invalidate,
            "close": self.on_close,
            "detach": self.on_detach,
            "handle_error": self.on_handle_error,
            "after_cursor_execute": activity.on_after_cursor_execute,
            "commit": activity.on_commit,
            "rollback": activity.on_rollback,
        }
        self._doors = {name: self._door(name, handler) for name, handler in handlers.items()} | {
            "checkout": checkout_listener(ledger, self.first_checkout, pre_ping=settings.pre_ping, timed=timed),
            "checkin": checkin_listener(
                ledger, self.odd_checkin, resets=settings.resets and not activity.skips_rollback
            ),
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

    def detach(self, engine: Engine) -> None:
        """Stop listening on *engine*."""
        for name, door in self._doors.items():
            if event.contains(engine, name, door):
                event.remove(engine, name, door)

    def adopt(self, record: ConnectionPoolEntry) -> Slot:
        """Book a connection that was opened before we listened; when it was last active is not known."""
        ledger = self._ledger
        slot = self._slot(record)
        ledger.opened(slot, privates.established_at(record))
        slot.active = None
        slot.fresh = False
        slot.pings = server.ping_works(self._dialect)
        return slot

    def _door(self, name: str, handler: Callable[..., None]) -> Callable[..., None]:
        trouble = self._ledger.trouble

        def door(*args: Any) -> None:
            try:
                handler(*args)
            except Exception as error:  # noqa: BLE001
                trouble(describe(name, error))

        return door

    def _slot(self, record: ConnectionPoolEntry) -> Slot:
        info = record.record_info
        if info is None:
            msg = "a pool record without record_info"
            raise TypeError(msg)
        slot: Slot | None = info.get(self._ledger.key)
        if slot is None:
            slot = info[self._ledger.key] = Slot(record, privates.pool_of(record))
        return slot

    # Opening

    def on_do_connect(self, _dialect: Dialect, record: ConnectionPoolEntry | None, _args: Any, _kw: Any) -> None:
        """Begin to time an attempt to connect.

        Not fired for a custom creator, nor after a listener of the application's that made the connection itself.
        """
        # Whoever calls a pool's creator by hand may pass nothing, or something of their own.
        if not isinstance(record, ConnectionPoolEntry):
            return
        slot = self._slot(record)
        self._settle(slot)
        slot.dialing = self._clock()
        dialing.set(slot)

    def on_connect(self, _dbapi: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        """Book a connection that was established; SQLAlchemy may still fail to set it up."""
        ledger, slot = self._ledger, self._slot(record)
        self._settle(slot)
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

        Not in ``connect``: there the application's own ``SET SESSION`` may still come, and the first connections of
        an engine are set up one after the other.

        Raises:
            DisconnectionError: The query found the connection lost; SQLAlchemy replaces it and dispatches again.
            Exception: The driver's own, when the replacement is lost too.
        """
        info = record.record_info
        slot: Slot | None = None if info is None else info.get(self._ledger.key)
        if slot is None or slot.opened is None:
            slot = self.adopt(record)
        if self._settings.pre_ping and not slot.fresh:
            slot.active = self._clock()
        slot.fresh = False
        slot.asked = True
        slot.pings = server.ping_works(self._dialect)
        if self.server_limits:
            self._ask(slot, dbapi)

    def _ask(self, slot: Slot, dbapi: DBAPIConnection) -> None:
        try:
            limits = server.ask_limits(self._dialect, dbapi)
        except Exception as error:
            if not self._lost(error, dbapi):
                return
            meant: Exception = error
            if not slot.refused:
                slot.refused = True
                meant = exc.DisconnectionError("the connection was lost before it was handed out")
            setattr(meant, MEANT, True)
            raise meant from error
        slot.refused = False
        slot.limits = limits.inactivity
        slot.active = self._clock()
        if limits.max_connections is not None:
            self._ledger.max_connections = limits.max_connections

    def _lost(self, error: Any, dbapi: Any) -> bool:
        # The protocol wants the driver's Error, which only the driver can name.
        return isinstance(error, self._errors) and self._dialect.is_disconnect(error, dbapi, None)  # type: ignore[arg-type]

    # Giving back

    def odd_checkin(self, slot: Slot, dbapi: DBAPIConnection | None, held: bool) -> None:  # noqa: FBT001
        """Book a return that the garbage collector made, or one without a connection: lost, or never connected.

        *held*: it ended a hold; otherwise the last caller's proxy may be long gone.
        """
        if held and slot.proxy() is None:
            # On a sync engine, a connection that was collected comes back as if it had been returned.
            self._ledger.count("leaks_total")
        if dbapi is None:
            self._settle(slot)
            slot.dialing = slot.returned = None
            # Lost while it was being set up: that fires no close.
            self._ledger.closed(slot, "failed")

    def on_detach(self, _dbapi: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        """Book a connection that leaves the pool for good: detached, or (async engines) leaked."""
        slot = self._slot(record)
        # On a sync engine a leaked one comes back instead, and another thread may have had the record meanwhile.
        serial, leaked = slot.serial, self.is_async and slot.proxy() is None
        if leaked:
            self._ledger.count("leaks_total")
        # Else another thread, which got the record before this event fired, has connected it again and booked this.
        if record.dbapi_connection is None:
            self._ledger.lost(slot, "leaked" if leaked else "detached", serial)

    # Closing

    def on_invalidate(self, _dbapi: DBAPIConnection, record: ConnectionPoolEntry, error: BaseException | None) -> None:
        """Remember why the ``close`` that follows will come; *error* is ``None`` for a call without one."""
        slot = self._slot(record)
        reason = self._found_lost(slot, record, error) or reasons.of_invalidation(
            error, self._errors, set_up=_is_set_up(slot, record), held=slot.held is not None
        )
        slot.fate = (reason, slot.proxy)
        self._ledger.count("invalidations_total", "hard")
        if isinstance(error, exc.DisconnectionError) and error.invalidate_pool:
            self._condemn_others(record, privates.pool_of(record))

    def _found_lost(self, slot: Slot, record: ConnectionPoolEntry, error: BaseException | None) -> str | None:
        """Return the reason of a close if the transport's end is behind it, whatever *error* says.

        With aiomysql under uvloop it is a plain RuntimeError, which a ping or a statement meets.
        """
        if not isinstance(error, Exception) or hasattr(error, MEANT) or not _is_set_up(slot, record):
            return None
        if not server.is_lost(self._dialect, record.driver_connection):
            return None
        if slot.held is not None:
            return "disconnect" if slot.failed else None
        return "pre_ping" if self._settings.pre_ping and not slot.fresh else None

    def on_soft_invalidate(
        self, _dbapi: DBAPIConnection, record: ConnectionPoolEntry, _error: BaseException | None
    ) -> None:
        """Count it; the connection is closed at its next checkout."""
        self._slot(record).dropped = "soft_invalidated"
        self._ledger.count("invalidations_total", "soft")

    def on_handle_error(self, context: Any) -> None:
        """Note an error of a statement, COMMIT or ROLLBACK; count one that condemns every connection of the pool."""
        slot = None if context.connection is None else slot_of(context.connection, self._ledger)
        if slot is None:
            return
        slot.failed = True
        record = slot.record()
        if context.is_disconnect and context.invalidate_pool_on_disconnect and record is not None:
            # Whichever pool opened it, SQLAlchemy invalidates the present one.
            self._condemn_others(record, context.connection.engine.pool)

    def _condemn_others(self, record: ConnectionPoolEntry, pool: Pool) -> None:
        # Several connections found lost at once condemn the rest only once.
        if privates.condemns_others(record, pool):
            self._ledger.count("invalidations_total", "pool")

    def on_close(self, _dbapi: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        """Book a close, or leave its reason open: a checkout will connect the record again, a dispose drop it."""
        slot = self._slot(record)
        (fate, proxy), slot.fate = slot.fate or (None, slot.proxy), None
        if proxy is not slot.proxy:
            # A listener of the application's failed, and the oldest SQLAlchemy handed the connection out again.
            fate = None
        fate = fate or reasons.of_close(record)
        if fate is not None:
            # A checkout that was interrupted while it closed what it meant to replace closes it again.
            reason = (slot.retiring.reason if slot.retiring else None) or fate
            if fate == "cancelled":
                # If it is a return that was cancelled, the oldest SQLAlchemy reports no other.
                self._ledger.lost(slot, reason, slot.serial)
            else:
                self._ledger.closed(slot, reason)
        else:
            full = reasons.is_full(privates.pool_of(record))
            slot.retiring = Retirement(privates.retirement(record), self._clock(), full=full)

    def _settle(self, slot: Slot) -> None:
        """Book a close whose reason was left open: the record is being connected again, so a checkout closed it."""
        retiring = slot.retiring
        if retiring is not None or slot.held is not None:
            # Without a close event: the thread that detaches it has returned the record, and is about to say so.
            self._ledger.lost(slot, "detached" if retiring is None else retiring.reason or "other", slot.serial)


def _is_set_up(slot: Slot, record: ConnectionPoolEntry) -> bool:
    # One that was handed out before anybody listened to checkouts is still fresh.
    return slot.held is not None or not privates.is_fresh(record)
