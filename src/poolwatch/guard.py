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
from poolwatch.slot import Allowance
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
        installed: It is on; ``None`` until somebody wanted that.
    """

    def __init__(self, ledger: Ledger, dialect: Dialect, losses: Losses, *, resets: bool) -> None:
        self._ledger = ledger
        self._dialect = dialect
        self._driver = driver_of(dialect)
        self._losses = losses
        self._resets = resets
        # By their numbers, connections that the checkout under way closes.
        self._to_hang_up: set[int] = set()
        self.installed: bool | None = None

    def install(self, pool: Pool, stopped: list[bool]) -> None:
        """Guard *pool*; raises TypeError where its class cannot be extended.

        *stopped*: not empty once the pool may have its class back.
        """
        self.installed = False
        classes.extend(pool, {privates.TAKE: self._taking, privates.CLOSE: self._closing}, stopped)
        self.installed = True

    def restart(self) -> None:
        """Forget what was being closed, in a forked child: it is the parent's."""
        self._to_hang_up.clear()

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
                if id(dbapi) in self._to_hang_up:
                    self._to_hang_up.discard(id(dbapi))
                    self._driver.hang_up(self._dialect.get_driver_connection(dbapi))
            except Exception as error:  # noqa: BLE001
                self._ledger.trouble(describe("guard", error))
            original(self_, dbapi, **how)

        return close

    def _look(self, slot: Slot, record: ConnectionPoolEntry) -> None:
        """Condemn *record*'s connection if need be.

        A second look, as a queue takes that has lost a race for a place, changes nothing.
        """
        connection = record.driver_connection
        # Some pools hand out what another caller has.
        if connection is None or record.in_use:
            return
        silence = slot.inactivity(self._ledger.clock())
        dead = self._driver.is_dead(connection)
        if not dead and not self._is_due(slot, connection, silence):
            return
        self._to_hang_up.add(id(record.dbapi_connection))
        # Else the checkout replaces it anyway, and books why.
        if privates.retirement(record) is None:
            slot.fate = ("guard_dead" if dead else "guard_deadline", slot.proxy)
            privates.condemn(record)
            if dead:
                self._losses.found(slot, "guard", connection, silence=silence)

    def _is_due(self, slot: Slot, connection: Any, silence: float | None) -> bool:
        if silence is None:
            # Opened before we listened, and not used since: it may have been silent all its life.
            silence = self._ledger.wall() - slot.opened_at
        allowed, configured = slot.allowance, self._ledger.configured
        if allowed is None or allowed.limits is not slot.limits or allowed.configured is not configured:
            slot.allowance = allowed = _allowance(slot.limits, configured)
        if self._resets or silence < min(allowed.inside, allowed.outside):
            return silence >= allowed.outside
        return silence >= (allowed.inside if self._driver.in_transaction(connection) else allowed.outside)


def _allowance(limits: Mapping[str, float], configured: Mapping[str, float]) -> Allowance:
    known = {**limits, **configured}
    outside, inside = (
        # No more than half of it, or one of a second would have every checkout connect anew.
        inf if limit in {None, inf} else limit - min(margin(limit), limit / 2)
        for limit in (limit_of(known, in_transaction=False), limit_of(known, in_transaction=True))
    )
    return Allowance(limits, configured, outside, inside)
