"""The arithmetic of inactivity limits: classes of risk, deadlines, the census."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from poolwatch.labels import RISKS, STATES
from poolwatch.snapshot import Connection, census

NOW = 1_000_000.0
IDLE = Connection(state="idle", created=NOW - 500, held_since=None, last_activity=NOW, limit=100.0, protected=False)


@pytest.mark.parametrize(
    ("silent", "unprotected", "protected"),
    [
        (0, "safe", "safe"),
        (74.9, "safe", "safe"),
        (75, "soon", "protected"),
        (89.9, "soon", "protected"),
        (90, "imminent", "protected"),
        (99.9, "imminent", "protected"),
        (100, "expired", "protected"),
        (5000, "expired", "protected"),
    ],
)
def test_risk_by_share_of_the_limit(silent: float, unprotected: str, protected: str) -> None:
    """The classes change at 25 %, 10 % and 0 of the limit left, each bound belonging to the worse class."""
    connection = replace(IDLE, last_activity=NOW - silent)
    assert unprotected == connection.risk(NOW)
    assert protected == replace(connection, protected=True).risk(NOW)


@pytest.mark.parametrize(
    ("connection", "risk"),
    [
        (replace(IDLE, limit=inf, last_activity=0.0), "safe"),
        (replace(IDLE, limit=None, last_activity=0.0), "unknown"),
        (replace(IDLE, last_activity=None), "unknown"),
        (replace(IDLE, state="dead", limit=None), "dead"),
        (replace(IDLE, state="dead", protected=True), "protected"),
    ],
)
def test_risk_without_a_share(connection: Connection, risk: str) -> None:
    """No limit is safe, an unknown one unknown, and death needs no limit."""
    assert risk == connection.risk(NOW)


def test_census_of_nothing() -> None:
    """Every state, class and moment is there when no connection is: at 0, or +Inf."""
    empty = census([], NOW)
    assert dict.fromkeys(STATES, 0) == empty.connections
    assert {(state, risk): 0 for state in ("checked_out", "idle") for risk in RISKS} == empty.timeout_risk_connections
    assert {("idle", "false"), ("idle", "true"), ("checked_out", "false")} == set(empty.next_deadline_timestamp_seconds)
    assert {inf} == set(empty.next_deadline_timestamp_seconds.values())
    assert inf == empty.oldest_connection_timestamp_seconds == empty.longest_hold_timestamp_seconds


def test_census_takes_the_earliest_moments() -> None:
    """The earliest deadline of each kind counts, dead connections have none, and the classes add up."""
    held = replace(IDLE, state="checked_out", held_since=NOW - 30, last_activity=NOW - 20)
    connections = [
        IDLE,
        replace(IDLE, last_activity=NOW - 10),
        replace(IDLE, state="dead", last_activity=NOW - 99),
        replace(IDLE, state="condemned", protected=True, created=NOW - 900),
        held,
        replace(held, held_since=NOW - 60),
    ]
    found = census(connections, NOW)
    assert {
        ("idle", "false"): NOW + 90,
        ("idle", "true"): NOW + 100,
        ("checked_out", "false"): NOW + 80,
    } == found.next_deadline_timestamp_seconds
    assert (NOW - 900, NOW - 60) == (found.oldest_connection_timestamp_seconds, found.longest_hold_timestamp_seconds)
    assert {"checked_out": 2, "idle": 2, "condemned": 1, "dead": 1} == found.connections
    assert len(connections) == sum(found.timeout_risk_connections.values())
