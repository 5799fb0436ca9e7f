"""A forked child begins with empty books, and what it does not use is not taken from its parent."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import poolwatch
from databases import PostgreSQL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolwatch.demo.servers import MariaDB

PROGRAM = Path(__file__).with_name("forking.py")
SOURCE = Path(poolwatch.__file__).parents[1]
SECONDS = 60
EVERYTHING = 21
ONE = {"connects": 1, "checkouts": 1, "connections": {"idle": 1}, "closes": {}, "series": 4}
# uvloop closes every transport with the loop that the child ran, libpq's sockets are not its own.
ENDED = {**ONE, "connections": {"dead": 1}}
NOTHING = {"connects": 0, "checkouts": 0, "connections": {}, "closes": {}, "series": 4}


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQL]:
    """Start a PostgreSQL; a machine without one fails."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture
def server(driver: str, request: pytest.FixtureRequest) -> MariaDB | PostgreSQL:
    """Return the server that *driver* speaks to."""
    made: MariaDB | PostgreSQL = request.getfixturevalue("mariadb" if "my" in driver else "postgresql")
    return made


def forked(server: MariaDB | PostgreSQL, driver: str, *options: str) -> dict[str, Any]:
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
        ("aiomysql", ("--loop=uvloop",), ENDED),
        ("aiomysql", ("--loop=uvloop", "--child=untouched"), NOTHING),
        ("pymysql", (), ONE),
        ("pymysql", ("--child=untouched", "--leave=exit"), NOTHING),
        *(
            case
            for driver in ("asyncmy", "asyncpg", "psycopg_async")
            for case in (
                (driver, (), ONE),
                (driver, ("--child=untouched", "--leave=exit"), NOTHING),
                pytest.param(
                    driver, ("--loop=uvloop",), ONE if driver == "psycopg_async" else ENDED, marks=pytest.mark.once
                ),
            )
        ),
        pytest.param("psycopg_async", ("--loop=uvloop", "--leave=exit"), ONE, marks=pytest.mark.once),
        # What was the parent's is the child's once the child uses it.
        ("psycopg_async", ("--child=use",), ONE),
        ("pymysql", ("--child=use",), ONE),
    ],
    ids=lambda each: each if isinstance(each, str) else "-".join(each) if isinstance(each, tuple) else "",
)
def test_parent_and_child(
    server: MariaDB | PostgreSQL, driver: str, options: tuple[str, ...], books: dict[str, object]
) -> None:
    """All of the parent's connections work after its child has collected garbage and ended; both books are true."""
    told = forked(server, driver, *options)
    assert (0, []) == (told["code"], told["lost"])
    assert [books] == told["children"]
    parents = {"connects": EVERYTHING, "checkouts": 2 * EVERYTHING - 1, "connections": {"idle": EVERYTHING}}
    assert {**parents, "closes": {}, "series": 4} == told["parent"]


@pytest.mark.once
@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy", "asyncpg"])
def test_child_that_ends_in_order_under_uvloop(server: MariaDB | PostgreSQL, driver: str) -> None:
    """What uvloop takes down with it at the child's end is lost to the parent, with us as without."""
    options = ("--loop=uvloop", "--leave=exit", "--patience=0.5")
    # At the same time: what takes long is patience.
    with ThreadPoolExecutor() as both:
        told = both.map(lambda more: forked(server, driver, *options, *more), ([], ["--unwatched"]))
        assert [EVERYTHING] * 2 == [len(each["lost"]) for each in told]


def test_child_that_uses_its_parents_connections(mariadb: MariaDB) -> None:
    """A child that disposes of nothing, which SQLAlchemy warns of, costs its parent no more than without us.

    The question for the limits is the first to find that the connection does not work in the child's event loop.
    """
    options = ("--child=use", "--patience=2")
    without, told = (forked(mariadb, "aiomysql", *options, *more) for more in (["--unwatched"], []))
    assert 0 == told["code"]
    assert ("RuntimeError", None) == (without["met"], told.get("met"))
    assert len(told["lost"]) <= len(without["lost"])
    (books,) = told["children"]
    assert ({"idle": 1}, {"disconnect": 1}) == (books["connections"], books["closes"])


def test_workers(mariadb: MariaDB) -> None:
    """Workers of a master that watched count for themselves, whoever was reading the master when they began."""
    told = forked(mariadb, "pymysql", "--child=workers")
    assert [0, 0] == told["codes"]
    assert [{**ONE, "checkouts": 2}] * 2 == told["children"]
    assert {**ONE, "checkouts": 2} == told["parent"]
