"""Why connections go: invalidated, found lost by a statement, closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import exc

from poolwatch import privates, reasons
from poolwatch.hotpath import MEANT
from poolwatch.losses import COUNTED
from poolwatch.records import slot_for, slot_of
from poolwatch.server import is_from_server
from poolwatch.slot import Retirement

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry, Pool

    from poolwatch.ledger import Ledger
    from poolwatch.losses import Losses
    from poolwatch.slot import Slot


class ClosingListeners:
    """Books in a ledger why connections are closed.

    Args:
        ledger: Where.
        settings: The pool's.
        dbapi_errors: The driver's own classes.
        losses: Where connections are booked that were found lost.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: privates.PoolSettings,
        dbapi_errors: tuple[type[BaseException], ...],
        losses: Losses,
    ) -> None:
        self._ledger = ledger
        self._clock = ledger.clock
        self._settings = settings
        self._errors = dbapi_errors
        self._losses = losses

    def on_invalidate(self, _dbapi: DBAPIConnection, record: ConnectionPoolEntry, error: BaseException | None) -> None:
        """Remember why the ``close`` that follows will come; *error* is ``None`` for a call without one."""
        slot = slot_for(record, self._ledger)
        reason = self._found_lost(slot, record, error) or reasons.of_invalidation(
            error, self._errors, set_up=_is_set_up(slot, record), held=slot.held is not None
        )
        slot.fate = (reason, slot.proxy)
        self._ledger.count("invalidations_total", "hard")
        if isinstance(error, exc.DisconnectionError) and error.invalidate_pool:
            self._condemn_others(record, privates.pool_of(record))
        phase = {"disconnect": "in_use", "reset_failed": "return", "pre_ping": "pre_ping"}.get(reason)
        if phase is not None and not hasattr(error, MEANT):
            self._lost(slot, record, phase, error, suspected=reason != "reset_failed")
            if slot.lost and slot.held is None and phase == "in_use":
                # A listener of the application's met it at checkout, and its caller gets no connection.
                setattr(error, COUNTED, True)

    def _found_lost(self, slot: Slot, record: ConnectionPoolEntry, error: BaseException | None) -> str | None:
        """Return the reason of a close if the transport's end is behind it, whatever *error* says.

        With aiomysql under uvloop it is a plain RuntimeError, which a ping or a statement meets.
        """
        if not isinstance(error, Exception) or hasattr(error, MEANT) or not _is_set_up(slot, record):
            return None
        connection = record.driver_connection
        if connection is None or not self._losses.is_lost(connection, suspected=False):
            return None
        if slot.held is not None:
            return "disconnect" if slot.failed else None
        return "pre_ping" if self._settings.pre_ping and not slot.fresh else None

    def _lost(
        self, slot: Slot, record: ConnectionPoolEntry, phase: str, error: BaseException | None, *, suspected: bool
    ) -> None:
        connection = record.driver_connection
        if connection is not None and self._losses.is_lost(connection, suspected=suspected):
            silence = slot.silence if phase == "in_use" else slot.inactivity(self._clock())
            self._losses.found(slot, phase, connection, silence=silence, error=error)

    def on_soft_invalidate(
        self, _dbapi: DBAPIConnection, record: ConnectionPoolEntry, _error: BaseException | None
    ) -> None:
        """Count it; the connection is closed at its next checkout."""
        slot_for(record, self._ledger).dropped = "soft_invalidated"
        self._ledger.count("invalidations_total", "soft")

    def on_handle_error(self, context: Any) -> None:
        """Note an error of a statement, COMMIT or ROLLBACK; count one that condemns every connection of the pool."""
        slot = None if context.connection is None else slot_of(context.connection, self._ledger)
        if slot is None:
            return
        slot.failed = True
        record = slot.record()
        if record is None:
            return
        error = context.original_exception
        # Not so for a cancelled statement, whose driver closes the connection.
        if isinstance(error, Exception):
            self._lost(slot, record, "in_use", error, suspected=context.is_disconnect)
            if not slot.lost and is_from_server(error):
                # Of a statement that failed no event of a cursor's tells.
                slot.active = self._clock()
        if context.is_disconnect and context.invalidate_pool_on_disconnect:
            # Whichever pool opened it, SQLAlchemy invalidates the present one.
            self._condemn_others(record, context.connection.engine.pool)

    def _condemn_others(self, record: ConnectionPoolEntry, pool: Pool) -> None:
        # Several connections found lost at once condemn the rest only once.
        if privates.condemns_others(record, pool):
            self._ledger.count("invalidations_total", "pool")

    def on_close(self, _dbapi: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        """Book a close, or leave its reason open: a checkout will connect the record again, a dispose drop it."""
        slot = slot_for(record, self._ledger)
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


def _is_set_up(slot: Slot, record: ConnectionPoolEntry) -> bool:
    # One that was handed out before anybody listened to checkouts is still fresh.
    return slot.held is not None or not privates.is_fresh(record)
