"""The question for a session's limits, at its connection's first checkout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import exc

from poolwatch import server
from poolwatch.hotpath import MEANT

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect
    from sqlalchemy.engine.interfaces import DBAPIConnection

    from poolwatch.ledger import Ledger
    from poolwatch.losses import Losses
    from poolwatch.slot import Slot

# Seconds: a server that has not answered so simple a question by then answers nothing.
PATIENCE = 5.0
# Seconds that a caller who gave up had waited, if it was for the answer.
IMPATIENCE = 1.0
# Seconds in which nobody is asked after a question that cost its connection; the one that takes its place least of all.
SILENCE = 60.0


class LimitQuestion:
    """Asks each session of one engine once.

    Not in ``connect``: there the application's own ``SET SESSION`` may still come, and the first connections of an
    engine are set up one after the other.

    Args:
        ledger: Where the answers go.
        dialect: The engine's.
        dbapi_errors: The driver's own classes.
        losses: Where connections are booked that the question finds lost.

    Attributes:
        enabled: Ask at all.
        patience: Seconds to wait for an answer.
    """

    def __init__(
        self, ledger: Ledger, dialect: Dialect, dbapi_errors: tuple[type[BaseException], ...], losses: Losses
    ) -> None:
        self._ledger = ledger
        self._dialect = dialect
        self._errors = dbapi_errors
        self._losses = losses
        self._quiet_until: float | None = None
        self.enabled = True
        self.patience = PATIENCE

    def ask(self, slot: Slot, dbapi: DBAPIConnection) -> None:
        """Ask for the limits of *slot*'s session; it stays unasked where this is not the moment.

        Raises:
            DisconnectionError: The connection cannot be used any more; SQLAlchemy replaces it and dispatches again, and
                the one that takes its place is handed out unasked.
        """
        slot.asked = not self.enabled
        quiet = self._quiet_until is not None and self._ledger.clock() < self._quiet_until
        if slot.asked or quiet:
            return
        slot.asked = True
        deadline = server.deadline_for(self._dialect, dbapi, self.patience)
        if deadline is None:
            return
        began = self._ledger.clock()
        try:
            limits = server.ask_limits(self._dialect, dbapi, deadline)
        except Exception as error:
            if server.was_refused(self._dialect, dbapi, error, self._errors):
                return
            self._be_quiet()
            if not isinstance(error, server.HangsError):
                self._lost(slot, dbapi, error)
            meant = exc.DisconnectionError("the connection was lost before it was handed out")
            setattr(meant, MEANT, True)
            raise meant from error
        except BaseException:
            # Callers with less patience than we have would never get a connection.
            if self._ledger.clock() - began > IMPATIENCE:
                self._be_quiet()
            raise
        if limits is None:
            slot.asked = False
        else:
            self._learn(slot, limits)

    def _be_quiet(self) -> None:
        self._quiet_until = self._ledger.clock() + SILENCE

    def _learn(self, slot: Slot, limits: server.ServerLimits) -> None:
        slot.limits = limits.inactivity
        slot.mark = limits.mark
        if limits is not server.UNKNOWN:
            slot.active = self._ledger.clock()
        if limits.max_connections is not None:
            self._ledger.max_connections = limits.max_connections

    def _lost(self, slot: Slot, dbapi: DBAPIConnection, error: Exception) -> None:
        connection = self._dialect.get_driver_connection(dbapi)
        if self._losses.is_lost(connection, suspected=False):
            silence = slot.inactivity(self._ledger.clock())
            self._losses.found(slot, "pre_ping", connection, silence=silence, error=error)
