"""Each check on its own: the facts that make a problem, and those beside it that make none."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nextafter
from typing import Any

import pytest

from poolwatch.checks import Facts, find, worker_processes
from poolwatch.labels import CHECKS
from poolwatch.privates import PoolSettings

# SQLAlchemy's defaults on a server that sets no limit.
QUEUE = PoolSettings(size=5, limit=15, recycle=inf, timeout=30.0, pre_ping=False, lifo=False, resets=True, queues=True)
FACTS = Facts(
    settings=QUEUE,
    guard=False,
    sees_death=True,
    pings=True,
    asked=True,
    served=True,
    idle_limit=inf,
    fatal=None,
    max_connections=None,
    processes=None,
)
LIMIT = 100.0
NULL = {"size": 0, "limit": inf, "timeout": inf, "queues": False}
ONE = {"size": 1, "limit": 1, "timeout": inf, "queues": False}
SETTINGS = set(PoolSettings.__dataclass_fields__)


def problems(changes: dict[str, Any]) -> set[str]:
    """Return the problems of a pool that differs from the one above by *changes* to its facts or settings."""
    settings = replace(QUEUE, **{key: value for key, value in changes.items() if key in SETTINGS})
    others = {key: value for key, value in changes.items() if key not in SETTINGS}
    return {finding.check for finding in find(replace(FACTS, settings=settings, **others))}


# By check: what provokes it, and what is next to that and does not.
CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "recycle_unprotected": (
        [
            {"idle_limit": LIMIT},
            {"idle_limit": LIMIT, "recycle": LIMIT},
            {"idle_limit": LIMIT, "pre_ping": True, "pings": False},
            {"idle_limit": LIMIT, **ONE},
            {"idle_limit": LIMIT, "size": inf, "limit": inf},
        ],
        [
            {},
            {"idle_limit": None},
            {"idle_limit": LIMIT, "recycle": nextafter(LIMIT, 0)},
            {"idle_limit": LIMIT, "pre_ping": True},
            {"idle_limit": LIMIT, "guard": True},
            {"idle_limit": LIMIT, **NULL},
        ],
    ),
    "recycle_churn": (
        [
            {"recycle": 0},
            {"recycle": 0, "idle_limit": None},
            {"recycle": 29.9},
            {"recycle": 29.9, "idle_limit": 28800.0},
            {"recycle": 9.9, "idle_limit": 40.0},
            {"recycle": 29.9, **ONE},
        ],
        [
            {},
            {"recycle": 30},
            {"recycle": 29.9, "idle_limit": None},
            {"recycle": 10, "idle_limit": 40.0},
            {"recycle": 0, **NULL},
        ],
    ),
    "guard_and_pre_ping": (
        [{"guard": True, "pre_ping": True}],
        [{"guard": True}, {"pre_ping": True}, {"guard": True, "pre_ping": True, "sees_death": False}],
    ),
    "pre_ping_broken": ([{"pre_ping": True, "pings": False}], [{"pre_ping": True}, {"pings": False}]),
    "lifo_tail": (
        [{"lifo": True, "idle_limit": LIMIT}, {"lifo": True, "idle_limit": LIMIT, "recycle": LIMIT, "size": 2}],
        [
            {"lifo": True},
            {"lifo": True, "idle_limit": None},
            {"lifo": True, "idle_limit": LIMIT, "recycle": 60},
            {"lifo": True, "idle_limit": LIMIT, "pre_ping": True},
            {"lifo": True, "idle_limit": LIMIT, "guard": True},
            {"lifo": True, "idle_limit": LIMIT, "size": 1},
            {"idle_limit": LIMIT},
        ],
    ),
    "unlimited_overflow": ([{"limit": inf}, {"limit": inf, "served": False}], [{}, NULL]),
    "process_over_server": (
        [{"max_connections": 14}],
        [{}, {"max_connections": 15}, {"max_connections": 14, **NULL}, {"max_connections": 14, "limit": inf}],
    ),
    "fleet_over_server": (
        [{"max_connections": 59, "processes": 4}],
        [
            {"processes": 4},
            {"max_connections": 59},
            {"max_connections": 60, "processes": 4},
            {"max_connections": 59, "processes": 4, **NULL},
            {"max_connections": 59, "processes": 4, "limit": inf},
        ],
    ),
    "limit_unknown": (
        [
            {"idle_limit": None},
            {"idle_limit": None, "pre_ping": True, "pings": False},
            {"idle_limit": None, "recycle": 60},
            {"idle_limit": None, "guard": True, "sees_death": False},
            {"idle_limit": None, **ONE},
        ],
        [
            {},
            {"idle_limit": LIMIT},
            {"idle_limit": None, "asked": False},
            {"idle_limit": None, "served": False},
            {"idle_limit": None, "pre_ping": True},
            {"idle_limit": None, "guard": True},
            {"idle_limit": None, **NULL},
        ],
    ),
    "hidden_limit": (
        [
            {"fatal": 10.0},
            {"fatal": 10.0, "idle_limit": None},
            {"fatal": 90.0, "idle_limit": LIMIT},
        ],
        [{}, {"fatal": 9.9}, {"fatal": 90.1, "idle_limit": LIMIT}, {"fatal": 9.9, "idle_limit": LIMIT}],
    ),
    "pool_cannot_queue": (
        [ONE, {**ONE, "size": 5, "limit": 5}, {"timeout": -1}],
        [
            {},
            NULL,
            {**ONE, "served": False},
            {"timeout": 0},
            {"timeout": inf},
            {"timeout": -1, "served": False},
            {"timeout": -1, "limit": inf},
        ],
    ),
}


def test_every_check_is_here() -> None:
    """Protects the table above, and the names that the catalogue promises."""
    assert list(CASES) == list(CHECKS)


@pytest.mark.parametrize(
    ("check", "changes"), [(check, changes) for check, (wrong, _) in CASES.items() for changes in wrong]
)
def test_problem(check: str, changes: dict[str, Any]) -> None:
    """Protects those who have the problem from not being told."""
    assert check in problems(changes)


@pytest.mark.parametrize(
    ("check", "changes"), [(check, changes) for check, (_, right) in CASES.items() for changes in right]
)
def test_no_problem(check: str, changes: dict[str, Any]) -> None:
    """Protects those who have not, those of whom too little is known, and those who chose it, from false alarms."""
    assert check not in problems(changes)


def test_defaults_are_no_problem() -> None:
    """SQLAlchemy's own settings are fine where nothing limits an idle connection."""
    assert set() == problems({})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4", 4),
        (" 1\n", 1),
        *[(text, None) for text in (None, "", "0", "-4", "four", "2.5", "1e3", "9" * 5000, "100000000")],
    ],
)
def test_worker_processes(text: str | None, number: int | None) -> None:
    """Whatever the environment says, it is a number of processes or it is unknown."""
    assert number == worker_processes(text)
