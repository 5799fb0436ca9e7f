"""A forked child begins with empty books, and what it does not use is not taken from its parent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import poolwatch

if TYPE_CHECKING:
    from poolwatch.demo.servers import MariaDB

PROGRAM = Path(__file__).with_name("forking.py")
SOURCE = Path(poolwatch.__file__).parents[1]
SECONDS = 60
EVERYTHING = 21
ONE = {"connects": 1, "checkouts": 1, "connections": {"idle": 1}, "closes": {}, "series": 4}
NOTHING = {"connects": 0, "checkouts": 0, "connections": {}, "closes": {}, "series": 4}


def forked(server: MariaDB, driver: str, *options: str) -> dict[str, Any]:
    """Let a process fork; return what it and its children told, the children's as a list."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", PROGRAM, server.url(driver), *options],
        stdout=subprocess.PIPE,
        timeout=SECONDS,
        check=True,
        text=True,
        env={"PYTHONPATH": str(SOURCE)},
    )
    told: dict[str, Any] = {"children": []}
    for line in done.stdout.splitlines():
        facts = json.loads(line)
        told["children"] += [facts.pop("child")] if "child" in facts else []
        told |= facts
    return told


@pytest.mark.parametrize(
    ("driver", "options", "books"),
    [
        ("aiomysql", (), ONE),
        ("aiomysql", ("--leave=exit",), ONE),
        ("aiomysql", ("--child=untouched", "--leave=exit"), NOTHING),
        ("aiomysql", ("--loop=uvloop",), ONE),
        ("aiomysql", ("--loop=uvloop", "--child=untouched"), NOTHING),
        ("pymysql", (), ONE),
        ("pymysql", ("--child=untouched", "--leave=exit"), NOTHING),
        # What was the parent's is the child's once the child uses it.
        ("pymysql", ("--child=use",), ONE),
    ],
    ids=lambda each: each if isinstance(each, str) else "-".join(each) if isinstance(each, tuple) else "",
)
def test_parent_and_child(mariadb: MariaDB, driver: str, options: tuple[str, ...], books: dict[str, object]) -> None:
    """All of the parent's connections work after its child has collected garbage and ended; both books are true."""
    told = forked(mariadb, driver, *options)
    assert (0, []) == (told["code"], told["lost"])
    assert [books] == told["children"]
    parents = {"connects": EVERYTHING, "checkouts": 2 * EVERYTHING - 1, "connections": {"idle": EVERYTHING}}
    assert {**parents, "closes": {}, "series": 4} == told["parent"]


def test_child_that_uses_its_parents_connections(mariadb: MariaDB) -> None:
    """A child that disposes of nothing, which SQLAlchemy warns of, costs its parent no more than without us."""
    without, told = (forked(mariadb, "aiomysql", "--child=use", *more) for more in (["--unwatched"], []))
    assert (0, without["met"]) == (told["code"], told["met"])
    assert len(told["lost"]) <= len(without["lost"])
    (books,) = told["children"]
    assert {} == books["connections"]


def test_workers(mariadb: MariaDB) -> None:
    """Workers of a master that watched count for themselves, whoever was reading the master when they began."""
    told = forked(mariadb, "pymysql", "--child=workers")
    assert [0, 0] == told["codes"]
    assert [{**ONE, "checkouts": 2}] * 2 == told["children"]
    assert {**ONE, "checkouts": 2} == told["parent"]
