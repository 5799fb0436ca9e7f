"""The books: folding, clocks that jump, writers that find the lock taken."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from poolwatch.hotpath import checkin_listener
from poolwatch.ledger import FOLD_AT, Ledger
from poolwatch.requests import Account, Terms
from poolwatch.slot import Retirement, Slot


class Record:
    """Stands for SQLAlchemy's record: something that can be referred to weakly."""


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return the monotonic clock."""
    return Clock(100.0)


@pytest.fixture
def wall() -> Clock:
    """Return the wall clock."""
    return Clock(1_000_000.0)


@pytest.fixture
def ledger(clock: Clock, wall: Clock) -> Ledger:
    """Return books of those clocks."""
    return Ledger(clock=clock, wall=wall)


RECORD = Record()


@pytest.fixture
def slot(ledger: Ledger) -> Slot:
    """Return a slot with an open connection."""
    made = Slot(RECORD, RECORD)
    ledger.opened(made, ledger.wall())
    return made


def test_lifetime_and_reason(ledger: Ledger, slot: Slot, clock: Clock) -> None:
    """A close is booked once, with its age and reason, and the next connection is a reconnect for that reason."""
    clock.now += 5
    ledger.closed(slot, "recycle")
    ledger.closed(slot, "disposed")
    ledger.opened(slot, ledger.wall())
    counts, durations, _ = ledger.read()
    assert (1, 0) == (counts["closes_total", "recycle"], counts["closes_total", "disposed"])
    assert (1, 5.0) == (
        durations["connection_lifetime_seconds"].count,
        durations["connection_lifetime_seconds"].sum,
    )
    assert (2, 1) == (counts["connects_total",], counts["reconnects_total", "recycle"])


def test_age_when_it_was_closed(ledger: Ledger, slot: Slot, clock: Clock) -> None:
    """A close whose reason is decided later ends the connection's life when it happened."""
    clock.now += 5
    slot.retiring = Retirement("recycle", clock())
    clock.now += 30
    ledger.closed(slot, "recycle")
    assert 5.0 == ledger.read()[1]["connection_lifetime_seconds"].sum


def test_a_loss_that_two_find(ledger: Ledger, slot: Slot) -> None:
    """A loss that another thread is booking at this moment is not booked again."""
    ledger.slots.pop(slot.serial)
    ledger.closed(slot, "failed")
    assert 0 == ledger.read()[0]["closes_total", "failed"]


@pytest.mark.parametrize("reason", ["overflow", "disposed", "leaked", "reset_failed"])
def test_not_every_close_makes_a_reconnect(ledger: Ledger, slot: Slot, reason: str) -> None:
    """A connection that follows one that was not wanted any more is no reconnect."""
    ledger.closed(slot, reason)
    ledger.opened(slot, ledger.wall())
    counts, _, _ = ledger.read()
    assert [] == [key for key in counts if key[0] == "reconnects_total"]


def test_clock_that_goes_back(ledger: Ledger, slot: Slot, clock: Clock) -> None:
    """A duration is never negative."""
    ledger.handed_out(slot, clock())
    clock.now -= 50
    ledger.given_back(slot, clock())
    _, durations, _ = ledger.read()
    assert (1, 0.0) == (durations["hold_duration_seconds"].count, durations["hold_duration_seconds"].sum)


def test_a_loss_found_while_it_is_booked(ledger: Ledger, slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds it meanwhile changes neither the reason nor the number of holds."""
    ledger.handed_out(slot, ledger.clock())
    serial, observe = slot.serial, ledger.holds.observe

    def find_and_observe(seconds: float) -> None:
        ledger.lost(slot, "other", serial)
        observe(seconds)

    monkeypatch.setattr(ledger.holds, "observe", find_and_observe)
    ledger.lost(slot, "detached", serial)
    counts, durations, _ = ledger.read()
    assert (1, 0) == (counts["closes_total", "detached"], counts["closes_total", "other"])
    assert 1 == durations["hold_duration_seconds"].count


def test_a_loss_booked_after_the_record_was_connected_again(ledger: Ledger, slot: Slot) -> None:
    """It ends the hold of the connection that was lost, and not that of the one that came after."""
    ledger.handed_out(slot, ledger.clock())
    lost = slot.serial
    ledger.closed(slot, "detached", lost)
    ledger.opened(slot, ledger.wall())
    ledger.handed_out(slot, ledger.clock())
    ledger.lost(slot, "other", lost)
    counts, durations, _ = ledger.read()
    assert (2, 1) == (counts["connects_total",], counts["closes_total", "detached"])
    assert (1, [slot]) == (durations["hold_duration_seconds"].count, list(ledger.slots.values()))
    assert slot.held is not None


def test_connected_again_before_the_loss_is_booked(ledger: Ledger, slot: Slot) -> None:
    """A record that another thread connects while the loss of its last connection is told makes one reconnect."""
    ledger.closed(slot, "recycle")
    ledger.opened(slot, ledger.wall())
    lost = slot.serial
    ledger.opened(slot, ledger.wall())
    ledger.lost(slot, "detached", lost)
    counts, _, _ = ledger.read()
    assert (3, 1) == (counts["connects_total",], counts["reconnects_total", "recycle"])
    assert (1, 1) == (counts["closes_total", "recycle"], counts["closes_total", "detached"])


def test_moments_follow_the_wall_clock(ledger: Ledger, wall: Clock) -> None:
    """A wall clock that is set moves every moment; its microseconds do not."""
    assert 1_000_000.0 == ledger.moment(100.0)
    wall.now += 0.001
    assert 1_000_000.0 == ledger.moment(100.0)
    wall.now += 3600
    assert pytest.approx(1_003_600.001) == ledger.moment(100.0)


def test_a_long_backlog_is_folded_by_its_writer(ledger: Ledger) -> None:
    """Without any reader the backlog stays short."""
    for _ in range(3 * FOLD_AT):
        ledger.count("connects_total")
        assert len(ledger._events) <= FOLD_AT
    assert 3 * FOLD_AT == ledger.read()[0]["connects_total",]


def test_a_writer_never_waits(ledger: Ledger) -> None:
    """A writer that finds somebody folding goes on, in another thread or in the same one, and nothing is lost."""
    with ledger._lock:
        for _ in range(FOLD_AT + 5):
            ledger.count("connects_total")
        other = threading.Thread(target=ledger.count, args=("connects_total",))
        other.start()
        other.join(10)
        assert not other.is_alive()
    assert FOLD_AT + 6 == ledger.read()[0]["connects_total",]


def test_first_trouble_is_kept(ledger: Ledger) -> None:
    """Every error of our own is counted, the first is told."""
    ledger.trouble("first")
    ledger.trouble("second")
    counts, _, trouble = ledger.read()
    assert (2, "first") == (counts["internal_errors_total",], trouble)


def test_restart(ledger: Ledger, slot: Slot) -> None:
    """A forked child begins with empty books, of requests too."""
    slot.caller = Account(object(), Terms(lambda _: ("GET", "/a"), 1))
    for _ in range(2):
        ledger.handed_out(slot, ledger.clock())
    ledger.read()
    ledger.late.append((slot.caller, 1.0))
    ledger.leaked.append((slot.caller, 1.0, ()))
    ledger.lines["leaked", ("GET", "/a")] = 1.0, 1
    ledger.restart()
    assert [0, 0, 0] == [len(each) for each in (ledger.late, ledger.leaked, ledger.lines)]
    ledger.read()
    assert {"route_checkouts_total": {}, "route_hold_seconds_total": {}} == ledger.read_usage()


def test_read_while_a_hold_ends(ledger: Ledger, slot: Slot, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader in another thread, at the moment of the return, does not see a hold that is longer than it was."""
    slot.caller = Account(object(), Terms(lambda _: ("GET", "/"), 1))
    ledger.handed_out(slot, clock())
    read = ledger.read_usage

    def look() -> float:
        """Tell the time; before who asked can go on, time passes and somebody reads."""
        asked = clock.now
        clock.now += 1
        with monkeypatch.context() as patch:
            patch.setattr(ledger, "clock", clock)
            read()
        return asked

    monkeypatch.setattr(ledger, "clock", look)
    check_in = checkin_listener(ledger, lambda *_: None, resets=False)
    check_in(None, SimpleNamespace(record_info={ledger.key: slot}))
    monkeypatch.setattr(ledger, "clock", clock)
    _, durations, _ = ledger.read()
    assert {("GET", "/"): durations["hold_duration_seconds"].sum} == read()["route_hold_seconds_total"]
