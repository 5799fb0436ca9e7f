"""Whatever is booked, in whatever order and however often it is folded, the books are those of plain arithmetic."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from poolwatch import ledger as books
from poolwatch.labels import CLOSED, REPLACED
from poolwatch.ledger import Ledger
from poolwatch.slot import Retirement, Slot
from random_seeds import run_of

WHICH = st.integers(0, 20)
# Sums of eighths are exact in any order.
SECONDS = st.integers(0, 400).map(lambda eighths: eighths / 8)
EVENTS = (("checkout_waits_total",), ("checkout_failures_total", "cancelled"), ("invalidations_total", "hard"))


class Record:
    """Stands for SQLAlchemy's record: something that can be referred to weakly."""


class Machine(RuleBasedStateMachine):
    """Drives one ledger, and beside it plain counts and lists of durations.

    Attributes:
        seen: What was counted in all examples.
    """

    seen: ClassVar[Counter[tuple[str, ...]]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.ledger = Ledger(clock=lambda: self.now, wall=lambda: self.now + 1_000_000)
        self.slots: list[Slot] = []
        # Kept alive here, and by the slots not at all.
        self.records: dict[int, Record] = {}
        self.counts: Counter[tuple[str, ...]] = Counter()
        names = ("checkout_duration", "connect_duration", "hold_duration", "idle_duration", "connection_lifetime")
        self.durations: dict[str, list[float]] = {f"{name}_seconds": [] for name in names}
        self.opened: dict[int, float] = {}
        self.held: dict[int, float] = {}
        self.returned: dict[int, float] = {}
        self.replaces: dict[int, str] = {}
        # The ledger's keys of connections that are closed, each its slot's last.
        self.gone: dict[int, int] = {}
        self.fresh: set[int] = set()
        self.troubles: list[str] = []
        self.read: Counter[tuple[str, ...]] = Counter()

    # What the model says more than once

    def one(self, which: int, among: Any) -> Slot:
        """Return one of the slots whose place in the list is *among* those given."""
        found = [slot for place, slot in enumerate(self.slots) if place in among]
        return found[which % len(found)]

    def end(self, serial: int, reason: str, at: float) -> None:
        """Book in the model that a connection was closed."""
        self.counts["closes_total", reason] += 1
        self.durations["connection_lifetime_seconds"].append(at - self.opened.pop(serial))
        self.replaces[serial] = reason
        self.gone[serial] = self.slots[serial].serial

    def give_back(self, serial: int) -> None:
        """Book in the model that a hold ended, if there was one."""
        if serial in self.held:
            self.durations["hold_duration_seconds"].append(self.now - self.held.pop(serial))

    def open(self, slot: Slot) -> None:
        """Open a connection in *slot*, in the ledger and in the model."""
        self.ledger.opened(slot, self.ledger.wall())
        serial = self.slots.index(slot)
        self.opened[serial] = self.now
        self.fresh.add(serial)
        self.held.pop(serial, None)
        self.returned.pop(serial, None)
        self.counts["connects_total",] += 1
        reason = self.replaces.pop(serial, None)
        if reason in REPLACED:
            self.counts["reconnects_total", reason] += 1
        if len(self.opened) % books.SWEEP_AT == 0:
            self.sweep()

    def sweep(self) -> None:
        """Book in the model what a full ledger looks for: connections that went with their records."""
        for serial in [each for each in self.opened if each not in self.records]:
            self.give_back(serial)
            self.end(serial, "failed" if serial in self.fresh else "disposed", self.now)

    # Steps

    @rule(seconds=SECONDS)
    def pass_time(self, seconds: float) -> None:
        """Both clocks go on."""
        self.now += seconds

    @precondition(lambda self: len(self.opened) < 4)
    @rule(which=WHICH, again=st.booleans())
    def connect(self, which: int, *, again: bool) -> None:
        """A record gets a connection: one that had one before, or a new one."""
        empty = self.records.keys() - self.opened.keys()
        if empty and (again or len(self.records) > 4):
            slot = self.one(which, empty)
        else:
            record = Record()
            slot = Slot(record, record)
            self.slots.append(slot)
            self.records[self.slots.index(slot)] = record
        self.open(slot)

    @precondition(lambda self: self.opened)
    @rule(which=WHICH, reason=st.sampled_from(CLOSED), times=st.integers(1, 2))
    def close(self, which: int, reason: str, times: int) -> None:
        """A connection is closed, which counts once."""
        slot = self.one(which, self.opened)
        for _ in range(times):
            self.ledger.given_back(slot, self.now)
            self.ledger.closed(slot, reason)
        self.give_back(self.slots.index(slot))
        self.end(self.slots.index(slot), reason, self.now)

    @precondition(lambda self: self.opened)
    @rule(which=WHICH, reason=st.sampled_from(CLOSED), times=st.integers(1, 2))
    def lose(self, which: int, reason: str, times: int) -> None:
        """A connection is found gone, held or not, which counts once."""
        slot = self.one(which, self.opened)
        for _ in range(times):
            self.ledger.lost(slot, reason, slot.serial)
        self.give_back(self.slots.index(slot))
        self.end(self.slots.index(slot), reason, self.now)

    @precondition(lambda self: self.gone)
    @rule(which=WHICH, reason=st.sampled_from(CLOSED))
    def find_lost_late(self, which: int, reason: str) -> None:
        """What is found of a connection that is closed already counts nothing, whatever its slot has now."""
        slot = self.one(which, self.gone)
        self.ledger.lost(slot, reason, self.gone[self.slots.index(slot)])

    @precondition(lambda self: self.opened.keys() - self.held.keys())
    @rule(which=WHICH, reason=st.sampled_from(CLOSED), seconds=SECONDS)
    def close_later(self, which: int, reason: str, seconds: float) -> None:
        """A connection is closed, and why is known later."""
        slot = self.one(which, self.opened.keys() - self.held.keys())
        slot.retiring = Retirement(None, self.now)
        self.end(self.slots.index(slot), reason, self.now)
        self.now += seconds
        self.ledger.closed(slot, reason)

    @precondition(lambda self: self.opened.keys() - self.held.keys())
    @rule(which=WHICH)
    def hand_out(self, which: int) -> None:
        """A connection is handed out."""
        self.hand_out_of(self.one(which, self.opened.keys() - self.held.keys()))

    def hand_out_of(self, slot: Slot) -> None:
        """Hand out a connection, in the ledger and in the model."""
        slot.fresh = False
        self.ledger.handed_out(slot, self.now)
        self.ledger.checkouts.observe(0.125)
        self.fresh.discard(self.slots.index(slot))
        self.durations["checkout_duration_seconds"].append(0.125)
        self.counts["checkouts_total",] += 1
        self.held[self.slots.index(slot)] = self.now
        if self.slots.index(slot) in self.returned:
            self.durations["idle_duration_seconds"].append(self.now - self.returned.pop(self.slots.index(slot)))

    @precondition(lambda self: self.held)
    @rule(which=WHICH, idle=st.booleans(), times=st.integers(1, 2))
    def check_in(self, which: int, times: int, *, idle: bool) -> None:
        """A connection comes back, which counts once; *idle*: it is known when."""
        self.check_in_to(self.one(which, self.held), times, idle=idle)

    def check_in_to(self, slot: Slot, times: int, *, idle: bool) -> None:
        """Give a connection back, in the ledger and in the model."""
        if idle:
            slot.returned = self.returned[self.slots.index(slot)] = self.now
        for _ in range(times):
            self.ledger.given_back(slot, self.now)
        self.give_back(self.slots.index(slot))

    @precondition(lambda self: self.opened.keys() & self.records.keys())
    @rule(which=WHICH, reasons=st.lists(st.sampled_from(CLOSED), min_size=1, max_size=4), idle=st.booleans())
    def replace(self, which: int, reasons: list[str], *, idle: bool) -> None:
        """One connection after another in a slot is used twice and closed."""
        slot = self.one(which, self.opened.keys() & self.records.keys())
        serial = self.slots.index(slot)
        for reason in reasons:
            for known in (idle, not idle):
                if serial not in self.held:
                    self.hand_out_of(slot)
                self.now += 1
                self.check_in_to(slot, 1, idle=known)
            self.ledger.closed(slot, reason)
            self.end(serial, reason, self.now)
            self.open(slot)

    @rule(event=st.sampled_from(EVENTS), times=st.integers(1, 12), elsewhere=st.booleans())
    def count(self, event: tuple[str, ...], times: int, *, elsewhere: bool) -> None:
        """Something is counted, in this thread or in another."""

        def note() -> None:
            for _ in range(times):
                self.ledger.count(*event)

        if elsewhere:
            thread = threading.Thread(target=note)
            thread.start()
            thread.join()
        else:
            note()
        self.counts[event] += times

    @rule(seconds=SECONDS, summary=st.sampled_from(("this", "that")))
    def fail(self, seconds: float, summary: str) -> None:
        """An attempt to connect is timed, its caller gets nothing in time, and something goes wrong here."""
        self.ledger.connects.observe(seconds)
        self.durations["connect_duration_seconds"].append(seconds)
        self.ledger.timeouts.observe(seconds)
        self.durations["checkout_duration_seconds"].append(seconds)
        self.counts["checkout_failures_total", "timeout"] += 1
        self.ledger.trouble(summary)
        self.troubles.append(summary)
        self.counts["internal_errors_total",] += 1

    @precondition(lambda self: self.records)
    @rule(which=WHICH)
    def collect(self, which: int) -> None:
        """A record is collected as garbage, its connection with it."""
        del self.records[sorted(self.records)[which % len(self.records)]]
        gc.collect(0)

    @rule()
    def relieve(self) -> None:
        """Somebody folds."""
        self.ledger.relieve()
        assert not self.ledger._events

    @rule(elsewhere=st.booleans())
    def compare(self, *, elsewhere: bool = False) -> None:
        """A reader, here or in another thread, finds what the model says, and nothing less than the one before."""
        answers: list[Any] = []
        if elsewhere:
            thread = threading.Thread(target=lambda: answers.append(self.ledger.read()))
            thread.start()
            thread.join()
        else:
            answers.append(self.ledger.read())
        ((counts, durations, trouble),) = answers
        assert +self.counts == +counts
        assert self.read <= counts
        self.read = counts
        assert (self.troubles[0] if self.troubles else None) == trouble
        for name, expected in self.durations.items():
            found = durations[name]
            assert (len(expected), sum(expected)) == (found.count, found.sum)
            assert tuple(sum(each <= bound for each in expected) for bound in found.bounds) == found.cumulative

    @invariant()
    def open_slots(self) -> None:
        """What is open and held is so in both, and the books of both balance."""
        slots = self.ledger.slots
        assert self.opened == {self.slots.index(slot): slot.opened for slot in slots.values()}
        assert self.held == {self.slots.index(slot): slot.held for slot in self.slots if slot.held is not None}
        assert len(self.ledger._events) < books.FOLD_AT + self.counts["internal_errors_total",]
        closed = sum(number for key, number in self.counts.items() if key[0] == "closes_total")
        assert self.counts["connects_total",] - closed == len(slots)
        assert self.counts["checkouts_total",] == len(self.durations["hold_duration_seconds"]) + len(self.held)

    def teardown(self) -> None:
        """Read once more, and once again: a second reader finds the same."""
        self.compare()
        self.compare()
        self.seen.update(self.counts)


@pytest.mark.once
def test_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger agrees with plain arithmetic after every step."""
    monkeypatch.setattr(books, "FOLD_AT", 7)
    monkeypatch.setattr(books, "SWEEP_AT", 3)
    Machine.seen.clear()
    run_state_machine_as_test(Machine, settings=run_of(200))
    expected = {
        *(("closes_total", each) for each in CLOSED),
        *(("reconnects_total", each) for each in REPLACED),
        *EVENTS,
    }
    assert set() == {each for each in expected if not Machine.seen[each]}
