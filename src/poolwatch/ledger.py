"""The books of one pool: what listeners write without waiting, and what a reader makes of it.

Listeners may run in any thread, inside the garbage collector, in the middle of another listener. So writers only set
attributes of the one slot they are about and append to lists; whoever reads folds the lists under a lock that no
writer ever waits for.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

from poolwatch.catalog import BY_FIELD
from poolwatch.histogram import Histogram, taken
from poolwatch.labels import REPLACED
from poolwatch.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from poolwatch.histogram import HistogramSnapshot
    from poolwatch.requests import Account
    from poolwatch.slot import Slot
    from poolwatch.traces import Trace

FOLD_AT = 10_000
SWEEP_AT = 500
_JITTER = 0.01
_MOST_NEWS = 1000
_numbers = count()


# A request that is over, a slot whose connection was still out on its behalf, since when it was, and when that was.
Ending = tuple["Account", "Slot", float, float]


class Ledger:
    """Slots, counts and durations of one pool.

    Args:
        clock: Monotonic time in seconds.
        wall: Unix time in seconds.

    Attributes:
        name: The pool's.
    """

    def __init__(self, *, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.name = ""
        self.clock = clock
        self.wall = wall
        # Where a record keeps its slot; a key of our own, because a closed watch may still be on its way out.
        self.key = f"poolwatch.slot.{next(_numbers)}"
        self._serial = count().__next__
        # Slots that hold a connection by the books.
        self.slots: dict[int, Slot] = {}
        # The pool objects that callers are inside connect() of, one entry a caller.
        self.pending: list[Any] = []
        # What nobody has judged yet.
        self.endings: list[Ending] = []
        # When a line of a kind about a route was logged last, and how many were not since.
        self.lines: dict[tuple[str, tuple[str, str]], tuple[float, int]] = {}
        # Of connections that came back after it was logged that they were out, the seconds for which they were; and of
        # those that the garbage collector found, with where they were checked out. For whoever may log next.
        self.late: deque[tuple[Account, float]] = deque(maxlen=_MOST_NEWS)
        self.leaked: deque[tuple[Account, float, Trace]] = deque(maxlen=_MOST_NEWS)
        # The operator's own limit, by its source; empty where there is none.
        self.configured: Mapping[str, float] = {}
        self.max_connections: int | None = None
        # When an attempt to connect failed last.
        self.refused: float | None = None
        # The longest inactivity that a connection survived, the shortest that none is known to survive; seconds.
        self.survived = 0.0
        self.fatal: float | None = None
        self.pings = Histogram((inf,))
        self.checkouts = _histogram("checkout_duration_seconds")
        self.timeouts = _histogram("checkout_duration_seconds")
        self.connects = _histogram("connect_duration_seconds")
        # Holds that began outside any request, and those on behalf of one.
        self.holds = _histogram("hold_duration_seconds")
        self.usage = Usage(BY_FIELD["hold_duration_seconds"].buckets, self.trouble)
        self.idles = _histogram("idle_duration_seconds")
        self.lifetimes = _histogram("connection_lifetime_seconds")
        self._histograms = (
            self.pings,
            self.checkouts,
            self.timeouts,
            self.connects,
            self.holds,
            self.idles,
            self.lifetimes,
        )
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._events: list[tuple[str, ...]] = []
        self._note = self._events.append
        self._lock = threading.Lock()
        self._trouble: str | None = None
        self._offset = wall() - clock()

    def moment(self, reading: float) -> float:
        """Return the Unix time of a *reading* of the clock."""
        # Both clocks are read one after the other; following every microsecond of that would let moments jitter.
        offset = self.wall() - self.clock()
        if abs(offset - self._offset) > _JITTER:
            self._offset = offset
        return reading + self._offset

    def count(self, *event: str) -> None:
        """Count one event: a counter's field in the catalogue and its label values."""
        self._note(event)
        if len(self._events) >= FOLD_AT:
            self.relieve()

    def relieve(self) -> None:
        """Fold a long backlog, unless somebody else is folding: then the next writer does."""
        if self._lock.acquire(blocking=False):
            try:
                self._fold()
            finally:
                self._lock.release()

    def opened(self, slot: Slot, opened_at: float) -> None:
        """Book a connection established in *slot* at the wall-clock moment *opened_at*."""
        # If another thread is about to book the loss of the last one.
        self.given_back(slot, self.clock())
        slot.forget_connection()
        slot.opened = slot.active = self.clock()
        slot.opened_at = opened_at
        slot.serial = self._serial()
        self.slots[slot.serial] = slot
        if len(self.slots) % SWEEP_AT == 0:
            self._sweep()
        self.count("connects_total")
        if slot.replaces in REPLACED:
            self.count("reconnects_total", slot.replaces)
        slot.replaces = None

    def closed(self, slot: Slot, reason: str, serial: int | None = None) -> None:
        """Book the connection of *slot* as closed; a second time, or without one, do nothing.

        *serial*: the connection that is meant, where other threads may have opened another in the slot meanwhile.
        """
        opened, retiring = slot.opened, slot.retiring
        # Taking it out of the dictionary is atomic: a reader and a listener may both find the same loss.
        if self.slots.pop(slot.serial if serial is None else serial, None) is None or opened is None:
            return
        if slot.opened is opened:
            slot.opened = slot.retiring = slot.number = None
            slot.replaces = reason
            slot.asked = False
        self.count("closes_total", reason)
        self.lifetimes.observe((retiring.at if retiring else self.clock()) - opened)

    def lost(self, slot: Slot, reason: str, serial: int) -> None:
        """Book a connection as closed, as above, and the end of its hold if there is one."""
        self.closed(slot, reason, serial)
        held, now = None, self.clock()
        account = slot.account
        # Without a call in between, so that no other thread takes the same hold, or that of a later connection.
        if slot.serial == serial:
            held, slot.held = slot.held, None
        if held is not None:
            self.held(slot, account, now - held)

    def held(self, slot: Slot, account: Account | None, seconds: float) -> None:
        """Book a hold of *slot*'s connection that has ended, on behalf of *account*."""
        if account is None:
            self.holds.observe(seconds)
            return
        self.usage.note((account, seconds))
        account.gave_back(slot, seconds)

    def handed_out(self, slot: Slot, now: float) -> None:
        """Book a hold of *slot*'s connection that begins at *now*, on behalf of who was seen to check it out."""
        slot.arrived = False
        # Taken off first: who reads meanwhile would count it twice.
        before, held, slot.held = slot.account, slot.held, None
        if held is not None:
            self.held(slot, before, now - held)
        slot.account = account = slot.caller
        slot.held = now
        if account is not None:
            account.took(slot, self)
        if slot.returned is not None:
            self.idles.observe(now - slot.returned)
            slot.returned = None

    def given_back(self, slot: Slot, now: float) -> None:
        """Book the end of the hold of *slot*'s connection, if there is one."""
        slot.arrived = False
        account = slot.account
        held, slot.held = slot.held, None
        if held is not None:
            self.held(slot, account, now - held)

    def deadly(self) -> float | None:
        """Return the shortest inactivity that was fatal and that none has survived; ``None`` if there was none."""
        if self.fatal is not None and self.fatal <= self.survived:
            self.fatal = None
        return self.fatal

    def trouble(self, summary: str) -> None:
        """Count an error of our own; the first one's *summary* is kept for the reader to log."""
        self._note(("internal_errors_total",))
        if self._trouble is None:
            self._trouble = summary

    def read(self) -> tuple[Counter[tuple[str, ...]], dict[str, HistogramSnapshot], str | None]:
        """Fold everything and return copies: the counts, the histograms by field, and our own first error."""
        with self._lock:
            self._fold()
            durations = {
                "checkout_duration_seconds": self.checkouts.snapshot() + self.timeouts.snapshot(),
                "connect_duration_seconds": self.connects.snapshot(),
                "hold_duration_seconds": self.holds.snapshot() + self.usage.durations.snapshot(),
                "idle_duration_seconds": self.idles.snapshot(),
                "connection_lifetime_seconds": self.lifetimes.snapshot(),
            }
            counts = self._counts.copy()
            counts["checkouts_total",] += self.checkouts.snapshot().count
            counts["checkout_failures_total", "timeout"] += self.timeouts.snapshot().count
            counts["pre_pings_total",] += self.pings.snapshot().count
            counts["unreturned_total",] = self.usage.unreturned
            return counts, durations, self._trouble

    def read_usage(self) -> Mapping[str, Mapping[tuple[str, str], float]]:
        """Return the families that tell routes apart, by field, open holds included, as of the last fold."""
        now = self.clock()
        with self._lock:
            open_holds = [(slot.account, slot.held) for slot in list(self.slots.values())]
            held = [(account, now - since) for account, since in open_holds if since is not None]
            return self.usage.read(held, self.holds.snapshot())

    def restart(self) -> None:
        """Begin empty books, in a forked child; the lists stay the ones that writers know."""
        # A thread that is not in the child may have held it.
        self._lock = threading.Lock()
        lists = (self.slots, self.pending, self.endings, self.lines, self.late, self.leaked, self._events, self._counts)
        for held in lists:
            held.clear()
        for histogram in self._histograms:
            histogram.clear()
        self.usage.clear()
        self.max_connections = self.refused = self.fatal = self._trouble = None
        self.survived = 0.0

    def _sweep(self) -> None:
        """Book connections that went with their records, for pools that nobody reads."""
        for slot in list(self.slots.values()):
            if slot.record() is None:
                self.lost(slot, "failed" if slot.fresh else "disposed", slot.serial)

    def _fold(self) -> None:
        self._counts.update(taken(self._events))
        for histogram in self._histograms:
            histogram.fold()
        self.usage.fold()


def _histogram(field: str) -> Histogram:
    return Histogram(BY_FIELD[field].buckets)
