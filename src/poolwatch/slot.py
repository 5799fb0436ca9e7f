"""What is known of one pool record and the connection in it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from poolwatch.requests import Account
    from poolwatch.traces import Trace


class Retirement(NamedTuple):
    """A ``close`` event whose reason what follows decides.

    Attributes:
        reason: The reason if a checkout closed the connection to replace it; ``None`` if nothing called for that.
        at: When.
        full: The pool had no place for it: if no checkout closed it, its return did.
    """

    reason: str | None
    at: float
    full: bool = False


class Allowance(NamedTuple):
    """How long a connection may be inactive before the guard replaces it, and from what that was derived.

    Attributes:
        limits: The slot's limits of then.
        configured: The operator's own of then.
        outside: Seconds of it while no transaction is open; ``inf`` for ever.
        inside: Seconds while one is.
    """

    limits: Mapping[str, float]
    configured: Mapping[str, float]
    outside: float
    inside: float


class Slot:
    """One pool record: SQLAlchemy's place for a connection, which outlives the connections it holds.

    Moments are readings of the ledger's clock in seconds; ``None`` means that there is none.

    Attributes:
        record: The pool's record, held weakly.
        pool: The pool object that opened the connection, held weakly; ``Engine.dispose()`` makes another one.
        serial: Its connection's key in the ledger, or its last one's.
        number: Its label in the per-connection series; ``None`` until a reader gives one out.
        opened: When its connection was established; ``None`` while the books show no open connection here.
        opened_at: The same by the wall clock.
        active: When the server last heard from the connection; ``None`` for one that was adopted and not yet used.
        returned: When it was last checked in.
        held: When it was last handed out, while it is out.
        caller: The request that the last ``checkout`` event was seen in; ``None`` outside any.
        trace: Where in the code that was; empty if nobody asked for it.
        account: The request on whose behalf it was last handed out; ``None`` if that is not known to be one.
        arrived: A ``checkout`` event fired and the caller does not have the connection yet.
        fresh: No checkout has been dispatched since the connection was established.
        asked: A checkout of this connection got as far as our listener, and the session's limits were asked for.
        limits: Seconds of inactivity that the session allows, by source; empty while unknown.
        allowance: What the guard made of them; ``None`` until it did.
        mark: A number that is lower in sessions opened after a restart of the server; ``None`` if unknown.
        began: A statement was sent, and no COMMIT or ROLLBACK since.
        sent: When something was sent last, as far as events of its Connection tell; ``None`` before that.
        began_before: *began* at that moment.
        silence: How long the server had not heard from the connection then; ``None`` if unknown.
        goodbye: The number of the error that lay unread at that moment, if the server had said goodbye.
        ended: When a reader saw first that its transport had ended.
        lost: It was found lost, and that is booked.
        pings: Pre-ping notices a dead connection with this driver and event loop.
        proxy: What the caller of the last checkout holds, weakly; dead when the garbage collector gives it back.
        failed: A statement failed, and nothing was sent since.
        fate: Why an ``invalidate`` event condemned the connection that a ``close`` event is about to report, and the
            proxy of then.
        dropped: Why the connection was closed if its record is found gone; a StaticPool drops one without an event.
        retiring: A ``close`` event whose reason a later event decides.
        replaces: Why the slot's last connection was closed, until another is established.
        dialing: When an attempt to connect began, until it succeeded.
    """

    __slots__ = (
        "account",
        "active",
        "allowance",
        "arrived",
        "asked",
        "began",
        "began_before",
        "caller",
        "dialing",
        "dropped",
        "ended",
        "failed",
        "fate",
        "fresh",
        "goodbye",
        "held",
        "limits",
        "lost",
        "mark",
        "number",
        "opened",
        "opened_at",
        "pings",
        "pool",
        "proxy",
        "record",
        "replaces",
        "retiring",
        "returned",
        "sent",
        "serial",
        "silence",
        "trace",
    )

    def __init__(self, record: Any, pool: Any) -> None:
        self.record: weakref.ref[Any] = weakref.ref(record)
        self.pool: weakref.ref[Any] = weakref.ref(pool)
        self.serial = -1
        self.number: int | None = None
        self.replaces: str | None = None
        self.dialing: float | None = None
        self.opened: float | None = None
        self.opened_at = 0.0
        self.forget_connection()

    def inactivity(self, now: float) -> float | None:
        """Return the seconds that the server has not heard from the connection at *now*; ``None`` if unknown."""
        # Copied first: other threads change it.
        active = self.active
        return None if active is None else now - active

    def forget_connection(self) -> None:
        """Clear what was known of the connection the slot held."""
        self.active: float | None = None
        self.returned: float | None = None
        self.held: float | None = None
        self.caller: Account | None = None
        self.trace: Trace = ()
        self.account: Account | None = None
        self.arrived = False
        self.fresh = True
        self.asked = False
        self.limits: Mapping[str, float] = {}
        self.allowance: Allowance | None = None
        self.mark: float | None = None
        self.began = self.began_before = False
        self.sent: float | None = None
        self.silence: float | None = None
        self.goodbye: int | None = None
        self.ended: float | None = None
        self.lost = False
        self.pings = True
        self.proxy: Callable[[], object] = _nobody
        self.failed = False
        self.fate: tuple[str, Callable[[], object]] | None = None
        self.dropped = "other"
        self.retiring: Retirement | None = None


def _nobody() -> object:
    """Stand for the proxy of a caller we do not know: one that is never collected."""
    return _nobody
