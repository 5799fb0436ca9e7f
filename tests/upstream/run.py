"""Runs SQLAlchemy's own tests of pools, lost connections and asyncio, without and with every engine watched.

The tests come from the source distribution of the release that is installed; what they test is the installed one. Each
database is gone through twice and compared test by test. Exits 1 unless watching made no difference but the known ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy

from poolwatch.demo.servers import MariaDB

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
# Goes with the environment.
CACHE = Path(sys.prefix) / "upstream"
TESTS = ("test/engine/test_pool.py", "test/engine/test_reconnect.py", "test/ext/asyncio")
# Below these numbers of passed tests, something keeps most of them from being run.
DRIVERS = {"sqlite+pysqlite": 180, "sqlite+aiosqlite": 340, "mysql+pymysql": 180, "mysql+aiomysql": 360}
# Below these, something in the plugin has lost its hold.
LEAST_WATCHES = 150
LEAST_CHECKOUTS = 1000
# Far more than a run takes.
MOST_SECONDS = 1200

_CLASS = "the pool's class is a subclass while it is watched, and the test compares classes"
_MOCK = "the test lists the calls on a mock of MySQL's driver, and the query for the session's limits is among them"
# Tests that assert what watching changes on purpose.
INHERENT = {
    "test/engine/test_pool.py::PoolTest::test_no_connect_on_recreate": _CLASS,
    "test/engine/test_pool.py::PoolTest::test_rec_info": "what we know of a connection is kept in record_info",
}
# Before 2.1 these mock the driver of a database that we ask nothing.
if not sqlalchemy.__version__.startswith("2.0."):
    INHERENT |= {
        "test/engine/test_pool.py::ResetOnReturnTest::test_custom_via_engine[False-True]": _MOCK,
        "test/engine/test_pool.py::ResetOnReturnTest::test_custom_via_engine[True-True]": _MOCK,
        "test/engine/test_pool.py::ResetOnReturnTest::test_plain_rollback_via_engine[False-True]": _MOCK,
        "test/engine/test_pool.py::ResetOnReturnTest::test_plain_rollback_via_engine[True-True]": _MOCK,
    }


class Result(NamedTuple):
    """One database gone through twice.

    Attributes:
        driver: Its dialect and driver.
        bare: Each test's outcome without watching, and the end of its message.
        watched: The same with every engine watched.
        seen: What the watching plugin wrote down.
    """

    driver: str
    bare: dict[str, tuple[str, str]]
    watched: dict[str, tuple[str, str]]
    seen: dict[str, Any]

    def differing(self) -> list[str]:
        """Return the tests that did not come to the same."""
        nothing = ("not run", "")
        tests = sorted({*self.bare, *self.watched})
        return [each for each in tests if self.bare.get(each, nothing)[0] != self.watched.get(each, nothing)[0]]

    def complaints(self) -> Iterator[str]:
        """Yield what is not as it should be."""
        differing = self.differing()
        for test in differing:
            if test not in INHERENT:
                (before, _), (after, message) = (run.get(test, ("not run", "")) for run in (self.bare, self.watched))
                yield f"{test}: {before}, watched {after}\n{message}"
        for test, reason in INHERENT.items():
            if test not in differing and self.bare.get(test, ("", ""))[0] == "passed":
                yield f"{test}: no longer differs, though {reason}; take it off the list"
        yield from (f"the books do not balance after {each}" for each in self.seen["unbalanced"])
        if self.seen["internal_errors"]:
            yield f"{self.seen['internal_errors']} internal errors: {'; '.join(self.seen['troubles'])}"
        if self.seen["watches"] < LEAST_WATCHES or self.seen["checkouts"] < LEAST_CHECKOUTS:
            yield "next to nothing was watched"
        if self.outcomes("passed") < DRIVERS[self.driver]:
            yield f"only {self.outcomes('passed')} tests passed, not even {DRIVERS[self.driver]}"

    def outcomes(self, outcome: str) -> int:
        """Count the tests that came to *outcome* without watching."""
        return [each for each, _ in self.bare.values()].count(outcome)

    def row(self) -> str:
        """Return its line of the table."""
        figures = [len(self.bare), *map(self.outcomes, ("passed", "skipped", "failed", "error"))]
        figures += [self.seen[each] for each in ("watches", "checkouts", "internal_errors")]
        return self.driver.ljust(18) + "".join(str(each).rjust(11) for each in [*figures, len(self.differing())])


def fetch() -> Path:
    """Return the directory of the installed release's source distribution, downloaded if need be."""
    directory = CACHE / sqlalchemy.__version__
    if not directory.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            wanted = f"sqlalchemy=={sqlalchemy.__version__}"
            download = ("pip", "download", "--quiet", "--no-deps", "--no-binary", "sqlalchemy", "--dest", made, wanted)
            subprocess.run([sys.executable, "-m", *download], check=True)
            (archive,) = Path(made).glob("*.tar.gz")
            shutil.unpack_archive(archive, made)
            (unpacked,) = (each for each in Path(made).iterdir() if each.is_dir())
            unpacked.rename(directory)
    return directory


def go_through(source: Path, driver: str, url: str, *, watched: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the tests on the database at *url* once; return how they ended, and what the watching plugin saw."""
    with tempfile.TemporaryDirectory() as made:
        outcomes, seen = Path(made) / "outcomes", Path(made) / "watched"
        plugins = ["-p", "upstream_outcomes", "--outcomes", str(outcomes)]
        if watched:
            plugins += ["-p", "upstream_watched", "--watched", str(seen)]
        # Without the user's own packages (-s) SQLAlchemy's conftest leaves its source tree off the path.
        command = [sys.executable, "-s", "-m", "pytest", "--quiet", "--override-ini=addopts=", "-p", "no:cacheprovider"]
        command += ["--rootdir", str(source), "--dburi", url, *plugins, *(str(source / each) for each in TESTS)]
        path = os.pathsep.join(map(str, (HERE, HERE.parent)))
        try:
            ended = subprocess.run(
                command,
                cwd=made,
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                check=False,
                timeout=MOST_SECONDS,
            )
        except subprocess.TimeoutExpired:
            sys.exit(f"{driver}: the tests had not ended after {MOST_SECONDS} s")
        if not outcomes.exists():
            sys.exit(f"{driver}: pytest did not get to the end; it said:\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}")
        found = json.loads(outcomes.read_text())
        if found["sqlalchemy"] != sqlalchemy.__file__:
            sys.exit(f"{driver}: the tests ran on {found['sqlalchemy']}, not on what is installed")
        return found["outcomes"], json.loads(seen.read_text()) if watched else {}


def compare(source: Path, driver: str) -> Result:
    """Go through the tests with *driver* twice."""
    with MariaDB() if driver.startswith("mysql") else nullcontext() as server:
        url = f"{driver}://"
        if server is not None:
            server.query("CREATE DATABASE test_schema")
            server.query("GRANT ALL ON *.* TO app@'127.0.0.1'")
            url = server.url(driver.removeprefix("mysql+")) + "?charset=utf8mb4"
        bare, _ = go_through(source, driver, url, watched=False)
        watched, seen = go_through(source, driver, url, watched=True)
    return Result(driver, bare, watched, seen)


def main() -> int:
    """Go through all databases at once, print the table and the complaints."""
    source = fetch()
    with ThreadPoolExecutor(len(DRIVERS)) as pool:
        results = list(pool.map(lambda driver: compare(source, driver), DRIVERS))
    columns = ("tests", "passed", "skipped", "failed", "error", "watches", "checkouts", "our errors", "differ")
    print(f"SQLAlchemy {sqlalchemy.__version__}".ljust(18) + "".join(each.rjust(11) for each in columns))  # noqa: T201
    for result in results:
        print(result.row())  # noqa: T201
    complaints = [f"{result.driver}: {each}" for result in results for each in result.complaints()]
    for each in complaints:
        print(f"\n{each}")  # noqa: T201
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
