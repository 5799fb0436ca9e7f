"""When the server last heard from a connection, as far as events of its Connection tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolwatch.drivers import Driver, driver_of
from poolwatch.records import slot_of

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.engine import Dialect
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry, PoolResetState

    from poolwatch.ledger import Ledger
    from poolwatch.slot import Slot

# Seconds of silence in which a server may have said goodbye: one that is busy has no reason to.
_LONG = 1.0


class ActivityListeners:
    """Notes in a ledger's slots that something was sent.

    Args:
        ledger: Whose slots.
        dialect: The engine's.
        resets: The pool sends a ROLLBACK or COMMIT when a connection comes back.

    Attributes:
        marks_returns: Every return sends something: the pool's ROLLBACK, or just before that of the Connection that was
            closed.
        marks_resets: Some returns do, and the ``reset`` event tells which.
    """

    def __init__(self, ledger: Ledger, dialect: Dialect, *, resets: bool) -> None:
        self._ledger = ledger
        self._clock = ledger.clock
        self._dialect = dialect
        self._driver = driver_of(dialect)
        # Under AUTOCOMMIT the dialect sends no ROLLBACK, though the events fire (SQLAlchemy 2.0.43 and later).
        self._skips_rollback = bool(getattr(dialect, "skip_autocommit_rollback", False))
        self.marks_returns = resets and self._driver.always_sends and not self._skips_rollback
        self.marks_resets = resets and not self.marks_returns and type(self._driver) is not Driver

    def on_before_cursor_execute(self, connection: Connection, *_: Any) -> None:
        """Note how long the server has not heard from the connection, and whether it has had its last word."""
        slot = slot_of(connection, self._ledger)
        if slot is not None:
            self._sending(slot, connection)

    def on_after_cursor_execute(self, connection: Connection, *_: Any) -> None:
        """Note that the server has just heard from the connection."""
        slot = slot_of(connection, self._ledger)
        if slot is not None:
            slot.active = self._clock()
            slot.failed = False
            slot.began = True
            if slot.silence is not None and slot.silence > self._ledger.survived:
                self._ledger.survived = slot.silence

    def on_commit(self, connection: Connection) -> None:
        """As for a statement; the event fires before the COMMIT is sent, which makes a moment's difference."""
        slot = slot_of(connection, self._ledger)
        if slot is not None and self._is_sent(connection):
            self._end_transaction(slot, connection)

    def on_rollback(self, connection: Connection) -> None:
        """As for a commit, unless the dialect is told to send no ROLLBACK under AUTOCOMMIT."""
        slot = slot_of(connection, self._ledger)
        if slot is not None and self._is_sent(connection) and not self._is_quiet(connection):
            self._end_transaction(slot, connection)

    def on_reset(self, dbapi: DBAPIConnection, record: ConnectionPoolEntry | None, state: PoolResetState) -> None:
        """Note the pool's own ROLLBACK, which is about to be sent unless driver or dialect see no need for one."""
        if record is None or state.transaction_was_reset or not state.asyncio_safe:
            return
        slot: Slot | None = None if record.record_info is None else record.record_info.get(self._ledger.key)
        if slot is not None and self._is_reset_sent(dbapi, record.driver_connection):
            slot.active = self._clock()

    def _sending(self, slot: Slot, connection: Connection) -> None:
        slot.sent = self._clock()
        slot.silence = slot.inactivity(slot.sent)
        slot.began_before = slot.began
        slot.goodbye = None
        if slot.silence is not None and slot.silence >= _LONG:
            driver = connection.connection.driver_connection
            # None if the garbage collector took it before the Connection was closed.
            slot.goodbye = None if driver is None else self._driver.goodbye(driver)

    def _end_transaction(self, slot: Slot, connection: Connection) -> None:
        self._sending(slot, connection)
        slot.active = slot.sent
        slot.failed = slot.began = False

    def _is_sent(self, connection: Connection) -> bool:
        if self._driver.always_sends:
            return True
        driver = connection.connection.driver_connection
        return driver is not None and bool(self._driver.in_transaction(driver))

    def _is_reset_sent(self, dbapi: Any, connection: Any) -> bool:
        if self._skips_rollback and self._dialect.detect_autocommit_setting(dbapi):
            return False
        sends = self._driver.always_sends or self._driver.in_transaction(connection)
        # Of one that was lost nothing is heard, and how long it had been silent is still to be told.
        return bool(sends) and not self._driver.is_lost(connection)

    def _is_quiet(self, connection: Connection) -> bool:
        dbapi: Any = connection.connection.dbapi_connection
        return self._skips_rollback and bool(self._dialect.detect_autocommit_setting(dbapi))
