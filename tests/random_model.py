"""What SQLAlchemy's queue pool does with its places and connections, in as few words as possible."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from math import inf

import sqlalchemy

from poolwatch.labels import REPLACED, STATES

AGED = 1_000_000
# What can refuse a connection at checkout, in this order, and the reason for which it is closed then.
AT_CHECKOUT = {
    "refuses": "invalidated",
    "condemns all": "invalidated",
    "fails": "invalidated",
    "cancelled": "cancelled",
}
# This SQLAlchemy leaves a connection whose set-up failed to the garbage collector, or invalidates it with events.
STRANDS = sqlalchemy.__version__.startswith("2.0.3")


class RefusedError(Exception):
    """A caller gets no connection, for this reason of ``checkout_failures_total``."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)


@dataclass(eq=False)
class Place:
    """A pool's record: a place for a connection, with or without one.

    Attributes:
        pool: The pool object it belongs to.
        born: When its connection was established; ``None`` without one.
        soft: When it was last invalidated softly.
        held: A caller has its connection.
        dead: Its connection was lost, and nobody has noticed.
        silent: A guard has its next checkout replace it.
        returned: The watch saw its connection come back.
        replaces: Why its last connection went, where that makes the next one a reconnect.
    """

    pool: Pool
    born: float | None = None
    soft: float = -inf
    held: bool = False
    dead: bool = False
    silent: bool = False
    returned: bool = False
    replaces: str | None = None


@dataclass(eq=False)
class Pool:
    """One pool object; a dispose makes another.

    Attributes:
        idle: Places that nobody has taken, the next one first.
        places: How many places it has given out, and not dropped since.
        invalidated: When all its connections were last condemned.
        awaited: A caller waits for a place.
    """

    idle: list[Place] = field(default_factory=list)
    places: int = 0
    invalidated: float = -inf
    awaited: bool = False


class Model:
    """One engine's pools, and the books that whoever watches from the last :meth:`watch` on must have.

    Args:
        size: ``pool_size``.
        most: With the overflow.
        lifo: ``pool_use_lifo``.
        pre_ping: ``pool_pre_ping``.
        terminates: The dialect can close a connection that the garbage collector found.
    """

    def __init__(self, size: int, most: int, *, lifo: bool, pre_ping: bool, terminates: bool) -> None:
        self.size, self.most, self.lifo, self.pre_ping, self.terminates = size, most, lifo, pre_ping, terminates
        self.now = count(1).__next__
        self.pool = Pool()
        self.open: list[Place] = []
        # Connections that are open and no longer the pool's.
        self.beside = 0
        self.watch()

    def watch(self) -> None:
        """Begin new books: a connect for each open connection, a checkout for each that is out."""
        self.closes: Counter[str] = Counter()
        self.reconnects: Counter[str] = Counter()
        self.invalidations: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.leaks = self.waits = self.connect_failures = self.established = self.idles = 0
        self.adopted = len(self.open)
        self.checkouts = sum(place.held for place in self.open)
        for place in (*self.open, *self.pool.idle):
            place.returned, place.replaces, place.silent = False, None, False

    @property
    def full(self) -> bool:
        """Whether the next caller must wait."""
        return not self.pool.idle and self.pool.places >= self.most

    @property
    def alive(self) -> int:
        """How many connections the driver has open."""
        return self.beside + sum(not place.dead for place in self.open)

    @property
    def connects(self) -> bool:
        """Whether the next checkout establishes a connection."""
        place = self._next(self.pool)
        return not self.full and (place is None or place.born is None or self._replaced(place) is not None)

    def connections(self) -> dict[str, int]:
        """Return how many connections are in each state."""
        states = Counter(
            "checked_out" if place.held else "condemned" if self.retirement(place) else "idle" for place in self.open
        )
        return {state: states[state] for state in STATES}

    def retirement(self, place: Place) -> str | None:
        """Return why the next checkout of *place* replaces its connection."""
        assert place.born is not None
        if place.born < 0:
            return "recycle"
        if place.pool.invalidated > place.born:
            return "pool_invalidated"
        return "soft_invalidated" if place.soft > place.born else None

    def _replaced(self, place: Place) -> str | None:
        """Return the same, with what a guard would have against it."""
        return self.retirement(place) or ("guard_deadline" if place.silent else None)

    def _next(self, pool: Pool) -> Place | None:
        return pool.idle[-1 if self.lifo else 0] if pool.idle else None

    def release(self, place: Place) -> None:
        """Put *place* back: dropped if its pool is full; out of reach if its pool was disposed of."""
        held, place.held = place.held, False
        if len(place.pool.idle) < self.size:
            place.pool.idle.append(place)
            place.returned = held and place.born is not None
            if place.born is not None and place.pool is not self.pool and not place.pool.awaited:
                self.close(place, "disposed")
                self.beside += 1
        else:
            place.pool.places -= 1
            if place.born is not None:
                self.close(place, "overflow")

    def close(self, place: Place, reason: str) -> None:
        """Book the end of *place*'s connection."""
        self.open.remove(place)
        self.closes[reason] += 1
        place.born, place.returned, place.dead, place.silent = None, False, False, False
        place.replaces = reason if reason in REPLACED else None

    def lose(self, place: Place, reason: str) -> None:
        """Invalidate *place*'s connection."""
        self.invalidations["hard"] += 1
        self.close(place, reason)

    def condemn(self, pool: Pool, place: Place) -> None:
        """Condemn *pool*'s connections for the loss of *place*'s, unless that is done already."""
        assert place.born is not None
        if pool.invalidated < place.born:
            pool.invalidated = self.now()
            self.invalidations["pool"] += 1

    def checkout(self, troubles: list[str], pool: Pool | None = None) -> Place:
        """Check a connection out of *pool*, by default the present one, while *troubles* lie in wait.

        Raises:
            RefusedError: None was to be had.
        """
        pool = pool or self.pool
        place = self._next(pool)
        new = place is None
        if place is None:
            place = Place(pool)
            pool.places += 1
        else:
            pool.idle.remove(place)
        try:
            fresh = self._prepare(place, troubles, new=new)
        except RefusedError:
            if new:
                place.pool.places -= 1
            else:
                self.release(place)
            raise
        try:
            self._dispatch(place, troubles, fresh=fresh)
        except RefusedError:
            self.release(place)
            raise
        place.held = True
        self.checkouts += 1
        self.idles += place.returned
        place.returned = False
        return place

    def _dispatch(self, place: Place, troubles: list[str], *, fresh: bool) -> None:
        for _ in range(2):
            trouble = self._meet(place, troubles, pinged=self.pre_ping and not fresh)
            if trouble is None:
                return
            if trouble in {"fails", "cancelled"}:
                raise RefusedError(reason="cancelled" if trouble == "cancelled" else "other")
            fresh = self._prepare(place, troubles)
        self.lose(place, "invalidated")
        raise RefusedError(reason="other")

    def _prepare(self, place: Place, troubles: list[str], *, new: bool = False) -> bool:
        """Connect *place* if it has no connection that may be handed out; return whether that was called for."""
        reason = None if place.born is None else self._replaced(place)
        if reason is not None:
            self.close(place, reason)
        if place.born is not None:
            return False
        if meets(troubles, "refused"):
            self.connect_failures += 1
            raise RefusedError(reason="connect")
        self.established += 1
        place.born = self.now()
        self.open.append(place)
        if place.replaces is not None:
            self.reconnects[place.replaces] += 1
            place.replaces = None
        if meets(troubles, "set-up fails"):
            self.close(place, "failed")
            self.beside += STRANDS and new
            self.invalidations["hard"] += STRANDS and not new
            raise RefusedError(reason="other")
        return True

    def _meet(self, place: Place, troubles: list[str], *, pinged: bool) -> str | None:
        """Return what refuses *place*'s connection at checkout, which costs it."""
        found = "ping" if pinged and place.dead else next((each for each in AT_CHECKOUT if meets(troubles, each)), None)
        if found in {"ping", "condemns all"}:
            self.condemn(place.pool, place)
        if found is not None:
            self.lose(place, AT_CHECKOUT.get(found, "pre_ping"))
        return found

    def silence(self, *, guarded: bool) -> None:
        """Let no idle connection have been used for longer than the server allows, which a guard minds."""
        for place in self.pool.idle:
            place.silent = guarded and place.born is not None

    def age(self) -> None:
        """Make every open connection older than ``pool_recycle``."""
        for place in self.open:
            assert place.born is not None
            place.born -= AGED

    def cancel_connecting(self) -> None:
        """Book that the next caller was cancelled before it had a connection: its place, if it is not new, is empty."""
        place = self._next(self.pool)
        if place is not None:
            reason = None if place.born is None else self._replaced(place)
            if reason is not None:
                self.close(place, reason)
            self.pool.idle.remove(place)
            self.release(place)

    def leak(self, place: Place) -> None:
        """Book that the garbage collector found *place*'s connection: it leaves the pool."""
        self.leaks += 1
        self.close(place, "leaked")
        self.beside += not self.terminates
        self.release(place)

    def detach(self, place: Place) -> None:
        """Book that *place*'s connection is its caller's own from now on."""
        self.close(place, "detached")
        self.beside += 1
        self.release(place)

    def invalidate(self, place: Place, reason: str) -> None:
        """Book that *place*'s connection is closed for its caller, who gives the place back."""
        self.lose(place, reason)
        self.release(place)

    def dispose(self, *, close: bool) -> None:
        """Begin a new pool object; only places that are out keep the old one."""
        old, self.pool = self.pool, Pool()
        for place in old.idle:
            if place.born is not None:
                self.beside += not close and not place.dead
                self.close(place, "disposed")
        if close:
            old.idle.clear()


def meets(troubles: list[str], trouble: str) -> bool:
    """Tell whether *trouble* lies in wait; it then does no longer."""
    if trouble not in troubles:
        return False
    troubles.remove(trouble)
    return True
