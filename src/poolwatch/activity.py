"""When the server last heard from a connection, as far as events of its Connection tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.engine import Dialect

    from poolwatch.ledger import Ledger, Slot


class ActivityListeners:
    """Notes in a ledger's slots that something was sent.

    Args:
        ledger: Whose slots.
        dialect: The engine's.

    Attributes:
        skips_rollback: Under AUTOCOMMIT the dialect sends no ROLLBACK, though the events fire (SQLAlchemy 2.0.43 and
            later).
    """

    def __init__(self, ledger: Ledger, dialect: Dialect) -> None:
        self._ledger = ledger
        self._clock = ledger.clock
        self._dialect = dialect
        self.skips_rollback = bool(getattr(dialect, "skip_autocommit_rollback", False))

    def on_after_cursor_execute(self, connection: Connection, *_: Any) -> None:
        """Note that the server has just heard from the connection."""
        self._mark(slot_of(connection, self._ledger))

    def on_commit(self, connection: Connection) -> None:
        """As for a statement; the event fires before the COMMIT is sent, which makes a moment's difference."""
        self._mark(slot_of(connection, self._ledger))

    def on_rollback(self, connection: Connection) -> None:
        """As for a commit, unless the dialect is told to send no ROLLBACK under AUTOCOMMIT."""
        slot = slot_of(connection, self._ledger)
        if slot is not None and not self._is_quiet(connection.connection.dbapi_connection):
            self._mark(slot)

    def _is_quiet(self, dbapi: Any) -> bool:
        return self.skips_rollback and bool(self._dialect.detect_autocommit_setting(dbapi))

    def _mark(self, slot: Slot | None) -> None:
        if slot is not None:
            slot.active = self._clock()
            slot.failed = False


def slot_of(connection: Connection, ledger: Ledger) -> Slot | None:
    """Return the slot of *connection*; ``None`` for one that is closed, invalidated or not known."""
    # An invalidated Connection would reconnect when asked for its connection.
    if connection.closed or connection.invalidated:
        return None
    info = connection.connection.record_info
    return None if info is None else info.get(ledger.key)
