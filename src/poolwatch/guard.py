"""The guard: has a checkout replace a connection that is dead or about to be, without a round trip.

SQLAlchemy's public way, a ``checkout`` listener that raises DisconnectionError, comes after the ping, and takes one of
the two attempts that all listeners share: if another one refused the connection that took its place, the caller would
get an error. So the guard looks when the pool takes a record out, and condemns the connection; the checkout then
replaces it as it does one that is too old.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from poolwatch import classes, privates
from poolwatch.drivers import driver_of
from poolwatch.server import limit_of, margin
from poolwatch.slot import Patience
from poolwatch.trouble import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import Dialect
    from sqlalchemy.pool import ConnectionPoolEntry, Pool

    from poolwatch.ledger import Ledger
    from poolwatch.losses import Losses
    from poolwatch.slot import Slot


class Guard:
    """Guards one engine's pool.

    Args:
        ledger: The pool's books.
        dialect: The engine's.
        losses: Where connections are booked that it finds dead.
        resets: The pool ends transactions when a connection comes back.

    Attributes:
        configured: The operator's own limit, by its source; empty where there is none.
        installed: It is on; ``None`` until somebody wanted that.
    """

    def __init__(self, ledger: Ledger, dialect: Dialect, losses: Losses, *, resets: bool) -> None:
        self._ledger = ledger
        self._dialect = dialect
        self._driver = driver_of(dialect)
        self._losses = losses
        self._resets = resets
        # By their numbers, connections that the checkout under way closes.
        self._condemned: set[int] = set()
        self.configured: Mapping[str, float] = {}
        self.installed: bool | None = None

    def install(self, pool: Pool, stopped: list[bool]) -> None:
        """Guard *pool*; raises TypeError where its class cannot be extended.

        *stopped* has an entry once the books are closed, and nothing is known of any record any more.
        """
        self.installed = False
        classes.extend(pool, {privates.TAKE: self._taking, privates.CLOSE: self._closing}, stopped)
        self.installed = True

    def _taking(self, base: type[Pool]) -> Callable[[Pool], ConnectionPoolEntry]:
        original: Callable[[Pool], ConnectionPoolEntry] = getattr(base, privates.TAKE)
        key, look, trouble = self._ledger.key, self._look, self._ledger.trouble

        def take(self_: Pool) -> ConnectionPoolEntry:
            record = original(self_)
            try:
                slot: Slot | None = record.record_info.get(key)  # type: ignore[union-attr]
                # One that this checkout has opened is as good as it gets.
                if slot is not None and not slot.fresh:
                    look(slot, record)
            except Exception as error:  # noqa: BLE001
                trouble(describe("guard", error))
            except BaseException:
                # Nobody has the record yet, and nobody else would give it back.
                privates.put_back(self_, record)
                raise
            return record

        return take

    def _closing(self, base: type[Pool]) -> Callable[..., None]:
        original: Callable[..., None] = getattr(base, privates.CLOSE)

        def close(self_: Pool, dbapi: Any, **how: Any) -> None:
            try:
                # After the listeners to that, which may have a last use for one that lives.
                if id(dbapi) in self._condemned:
                    self._condemned.discard(id(dbapi))
                    self._driver.part(self._dialect.get_driver_connection(dbapi))
            except Exception as error:  # noqa: BLE001
                self._ledger.trouble(describe("guard", error))
            original(self_, dbapi, **how)

        return close

    def _look(self, slot: Slot, record: ConnectionPoolEntry) -> None:
        connection = record.driver_connection
        # Some pools hand out what another caller has.
        if connection is None or record.in_use:
            return
        dead = self._driver.is_dead(connection)
        if not dead and not self._is_due(slot, connection):
            return
        # Else the checkout replaces it anyway, and books why.
        if privates.retirement(record) is None:
            slot.fate = ("guard_dead" if dead else "guard_deadline", slot.proxy)
            privates.condemn(record)
            if dead:
                self._losses.found(slot, "guard", connection, silence=slot.inactivity(self._ledger.clock()))
        self._condemned.add(id(record.dbapi_connection))

    def _is_due(self, slot: Slot, connection: Any) -> bool:
        silence = slot.inactivity(self._ledger.clock())
        if silence is None:
            # Opened before we listened, and not used since: it may have been silent all its life.
            silence = self._ledger.wall() - slot.opened_at
        patience = slot.patience
        if patience is None or patience.limits is not slot.limits or patience.configured is not self.configured:
            slot.patience = patience = _patience(slot.limits, self.configured)
        if self._resets or silence < min(patience.inside, patience.outside):
            return silence >= patience.outside
        told = self._driver.in_transaction(connection)
        return silence >= (patience.inside if (slot.began if told is None else told) else patience.outside)


def _patience(limits: Mapping[str, float], configured: Mapping[str, float]) -> Patience:
    known = {**limits, **configured}
    outside, inside = (
        # No more than half of it, or one of a second would have every checkout connect anew.
        inf if limit in {None, inf} else limit - min(margin(limit), limit / 2)
        for limit in (limit_of(known, in_transaction=False), limit_of(known, in_transaction=True))
    )
    return Patience(limits, configured, outside, inside)
