"""Who used the pool: sums by method and route, bounded, and never going back."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from poolwatch.histogram import Histogram, HistogramSnapshot
from poolwatch.requests import NOBODY, Account, Terms
from poolwatch.usage import Usage

CHECKOUTS, HELD = "route_checkouts_total", "route_hold_seconds_total"
WAITED, HOLDING, UNRETURNED = "route_checkout_seconds_total", "route_connections", "route_unreturned_total"
NOTHING = HistogramSnapshot((inf,), (0,), 0, 0.0)


def account(route: str, *, method: str = "GET", most: int = 100, details: bool = False) -> Account:
    """Return the account of a request that is over."""
    made = Account(object(), Terms(lambda _: (method, route), most, details=details))
    made.ended = True
    return made


@pytest.fixture
def troubles() -> list[str]:
    """Return where errors of our own are told."""
    return []


@pytest.fixture
def usage(troubles: list[str]) -> Usage:
    """Return empty books."""
    return Usage((1.0,), troubles.append)


def test_sums(usage: Usage) -> None:
    """Ended holds, open ones and those outside any request add up to all, by owner."""
    outside = Histogram((1.0,))
    outside.observe(4.0)
    outside.fold()
    for seconds in (1.0, 2.0):
        usage.note((account("/a"), seconds))
    usage.note((account("/a", method="PUT"), 3.0))
    usage.fold()
    held = [(None, 8.0), (account("/a"), 16.0), (account("/b"), 32.0)]
    read = usage.read(held, outside.snapshot())
    assert {
        CHECKOUTS: {("GET", "/a"): 3, ("PUT", "/a"): 1, NOBODY: 2, ("GET", "/b"): 1},
        HELD: {("GET", "/a"): 19.0, ("PUT", "/a"): 3.0, NOBODY: 12.0, ("GET", "/b"): 32.0},
    } == read
    assert (3, 6.0) == (usage.durations.snapshot().count, usage.durations.snapshot().sum)


def test_nothing_goes_back(usage: Usage) -> None:
    """A hold that ends while it is read, and a clock that is set back, take nothing off a counter."""
    one = account("/a")
    usage.read([(one, 5.0), (None, 5.0)], NOTHING)
    once = {CHECKOUTS: {("GET", "/a"): 1, NOBODY: 1}, HELD: {("GET", "/a"): 5.0, NOBODY: 5.0}}
    assert once == usage.read([], NOTHING)
    usage.note((one, -3.0))
    usage.fold()
    assert {("GET", "/a"): 5.0, NOBODY: 5.0} == usage.read([(None, -1.0)], NOTHING)[HELD]


def test_no_hold_is_negative(usage: Usage) -> None:
    """A hold that a clock's being set back makes negative takes nothing off others."""
    for seconds in (-3.0, 10.0):
        usage.note((account("/a"), seconds))
    usage.fold()
    assert {CHECKOUTS: {("GET", "/a"): 3}, HELD: {("GET", "/a"): 10.0}} == usage.read([(account("/a"), -5.0)], NOTHING)


def test_cap(usage: Usage) -> None:
    """Routes past the cap are one; those known keep their names, as do those that are no route."""
    for route in ("/a", "/b", "/c", "unmatched", "/d", "/a"):
        usage.note((account(route, most=2), 1.0))
    usage.fold()
    held = [(account("/e", most=2), 1.0), (account("/b", method="PUT", most=2), 1.0)]
    checkouts = usage.read(held, NOTHING)[CHECKOUTS]
    owners = {"/a": 2, "/b": 1, "other": 3, "unmatched": 1}
    assert {("PUT", "/b"): 1} | {("GET", route): count for route, count in owners.items()} == checkouts


def test_caps_of_two(usage: Usage) -> None:
    """Of two middlewares before one pool each has its own cap, and no open hold is shown under two names in turn."""
    usage.note((account("/a", most=1), 1.0))
    usage.fold()
    held = [(account("/b", most=1), 1.0)]
    before = {("GET", "/a"): 1, ("GET", "other"): 1}
    assert before == usage.read(held, NOTHING)[CHECKOUTS]
    held.append((account("/b", most=2), 1.0))
    for _ in range(2):
        assert before | {("GET", "/b"): 1} == usage.read(held, NOTHING)[CHECKOUTS]


def test_no_route_at_all(usage: Usage) -> None:
    """With a cap of 0 no route has a name."""
    usage.note((account("/a", most=0), 1.0))
    usage.fold()
    assert {("GET", "other"): 1} == usage.read([], NOTHING)[CHECKOUTS]


def test_decided_when_it_is_known(usage: Usage, troubles: list[str]) -> None:
    """A fold of a writer's does not ask for the route of a request that goes on; a reader does, once and for all."""
    routes = iter(["/early", "/late"])
    one = Account(object(), Terms(lambda _: ("GET", next(routes)), 100))
    usage.note((one, 1.0))
    usage.fold()
    assert one.owner is None
    for _ in range(2):
        assert {("GET", "/early"): 1} == usage.read([], NOTHING)[CHECKOUTS]
    one.ended = True
    assert ("GET", "/early") == one.resolve(troubles.append)
    assert one.scope is None


def test_nobody_reads(usage: Usage) -> None:
    """Without any reader, requests that are over are not kept."""
    for _ in range(3):
        one = Account(object(), Terms(lambda _: ("GET", "/a"), 100))
        usage.note((one, 1.0))
        usage.fold()
        one.ended = True
    usage.fold()
    assert {} == usage._waiting
    assert {("GET", "/a"): 3} == usage.read([], NOTHING)[CHECKOUTS]


def test_a_route_that_fails(usage: Usage, troubles: list[str]) -> None:
    """A route of the application's that raises when it is asked is unmatched, and an error of ours, once."""

    def fail(_scope: Any) -> tuple[str, str]:
        message = "secret"
        raise ZeroDivisionError(message)

    one = Account(object(), Terms(fail, 100))
    one.ended = True
    for _ in range(2):
        assert {("other", "unmatched"): 1} == usage.read([(one, 1.0)], NOTHING)[CHECKOUTS]
    assert one.scope is None
    (told,) = troubles
    assert told.startswith("ZeroDivisionError in route")
    assert "secret" not in told


def test_details(usage: Usage) -> None:
    """What was noted before anybody asked is in them; nothing in them goes back, and no wait is negative."""
    one, other = account("/a"), account("/b", details=True)
    for who, seconds in ((one, 1.0), (one, 2.0), (other, 4.0), (other, -1.0), (None, 8.0)):
        usage.wait((who, seconds))
    for who in (one, other, one):
        usage.note((who, 0.0))
    usage.miss(one)
    usage.fold()
    assert 1 == usage.unreturned
    names = a, b = ("GET", "/a"), ("GET", "/b")
    outside = HistogramSnapshot((inf,), (1,), 1, 0.0)
    for held in ([(other, 0.0), (other, 0.0), (None, 0.0)], []):
        # That others do not ask changes nothing any more.
        usage.note((account("/a"), 0.0))
        usage.fold()
        read = usage.read(held, outside)
        assert {a: 3.0, b: 4.0, NOBODY: 8.0} == read[WAITED]
        assert {a: 0, b: 2 * bool(held), NOBODY: 1 * bool(held)} == read[HOLDING]
        assert {a: 1, b: 0, NOBODY: 0} == read[UNRETURNED]
    assert {CHECKOUTS, HELD, WAITED, HOLDING, UNRETURNED} == set(read)
    assert {*names, NOBODY} == set(read[CHECKOUTS])


def test_details_are_bounded(usage: Usage) -> None:
    """Connections left out by routes past the cap are one's."""
    for route in ("/a", "/b", "/c"):
        one = account(route, most=1, details=True)
        usage.miss(one)
        usage.note((one, 1.0))
    usage.fold()
    assert {("GET", "/a"): 1, ("GET", "other"): 2} == usage.read([], NOTHING)[UNRETURNED]


def test_details_nobody_asked_for(usage: Usage) -> None:
    """Without it they are counted, and not among the families."""
    usage.wait((account("/a"), 1.0))
    usage.miss(account("/a"))
    usage.fold()
    assert {CHECKOUTS, HELD} == set(usage.read([], NOTHING))
    assert 1 == usage.unreturned


def test_clear(usage: Usage) -> None:
    """In a forked child everything begins anew."""
    usage.note((account("/a", most=1), 1.0))
    usage.fold()
    usage.read([(account("/a"), 1.0)], NOTHING)
    usage.note((account("/a"), 1.0))
    usage.wait((None, 1.0))
    usage.wait((account("/a", details=True), 1.0))
    usage.miss(account("/a"))
    usage.fold()
    usage.wait((None, 1.0))
    usage.miss(account("/a"))
    usage.clear()
    usage.fold()
    assert 0 == usage.unreturned
    assert {CHECKOUTS: {}, HELD: {}} == usage.read([], NOTHING)
    assert 0 == usage.durations.snapshot().count
    assert {("GET", "/b"): 1} == usage.read([(account("/b", most=1), 1.0)], NOTHING)[CHECKOUTS]
    read = usage.read([(None, 1.0), (account("/b", details=True), 1.0)], NOTHING)
    assert {("GET", "/b"): 0.0, NOBODY: 0.0} == read[WAITED]
    assert {("GET", "/b"): 0, NOBODY: 0} == read[UNRETURNED]
