"""What ``pool_pre_ping`` sends: how often, how long it takes, and what it finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolwatch.drivers import driver_of
from poolwatch.losses import COUNTED
from poolwatch.server import is_disconnect
from poolwatch.trouble import describe

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

    from poolwatch.ledger import Ledger
    from poolwatch.losses import Losses
    from poolwatch.slot import Slot


class Pings:
    """Times the pings of one engine, by a ``do_ping`` on its dialect object that calls the class's.

    No event tells of a ping that succeeded. ``Dialect.do_ping`` is SQLAlchemy's public method for one.

    Args:
        ledger: Where they are booked.
        dialect: The engine's.
        dbapi_errors: The driver's own classes.
        losses: Where connections are booked that a ping finds lost.
    """

    def __init__(
        self, ledger: Ledger, dialect: Dialect, dbapi_errors: tuple[type[BaseException], ...], losses: Losses
    ) -> None:
        self._ledger = ledger
        self._dialect = dialect
        self._errors = dbapi_errors
        self._losses = losses
        self._driver = driver_of(dialect)
        self._attached = False
        # Made once: each look at a method makes another object.
        self._own = self._timed

    def attach(self) -> None:
        """Time every ping from now on; a dialect that somebody made for a test may have none."""
        if not hasattr(self._dialect, "do_ping"):
            return
        self._attached = True
        # Somebody else's, or none but the class's.
        self._before = vars(self._dialect).get("do_ping")
        self._original = self._dialect.do_ping
        self._dialect.do_ping = self._own  # type: ignore[assignment,method-assign]

    def detach(self) -> None:
        """Stop; where somebody else has replaced the method since, ours stays beneath theirs and lets pings through."""
        self._attached = False
        if vars(self._dialect).get("do_ping") is self._own:
            if self._before is None:
                del self._dialect.do_ping
            else:
                self._dialect.do_ping = self._before  # type: ignore[method-assign]

    def _timed(self, dbapi: Any) -> bool:
        if not self._attached:
            return self._original(dbapi)
        ledger = self._ledger
        began = ledger.clock()
        goodbye = self._look(dbapi)
        try:
            alive = self._original(dbapi)
        except Exception as error:
            self._failed(dbapi, began, goodbye, error)
            raise
        finally:
            ledger.pings.observe(ledger.clock() - began)
        if not alive:
            self._failed(dbapi, began, goodbye, None)
        return alive

    def _look(self, dbapi: Any) -> int | None:
        try:
            return self._driver.goodbye(self._dialect.get_driver_connection(dbapi))
        except Exception as error:  # noqa: BLE001
            self._ledger.trouble(describe("do_ping", error))
            return None

    def _failed(self, dbapi: Any, began: float, goodbye: int | None, error: Exception | None) -> None:
        try:
            slot = self._slot_of(dbapi)
            known = error is None or is_disconnect(self._dialect, dbapi, error, self._errors)
            connection = self._dialect.get_driver_connection(dbapi)
            if slot is not None and self._losses.is_lost(connection, suspected=known):
                slot.goodbye = goodbye
                phase = "pre_ping" if known else "ping_failed"
                self._losses.found(slot, phase, connection, silence=slot.inactivity(began), error=error)
                if error is not None and not known:
                    setattr(error, COUNTED, True)
        except Exception as trouble:  # noqa: BLE001
            self._ledger.trouble(describe("do_ping", trouble))

    def _slot_of(self, dbapi: Any) -> Slot | None:
        for slot in list(self._ledger.slots.values()):
            record = slot.record()
            if record is not None and record.dbapi_connection is dbapi:
                return slot
        return None
