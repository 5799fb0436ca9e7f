"""Threads at work on one pool: who uses its connections, and what happens to them meanwhile."""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Self

import pymysql  # type: ignore[import-untyped]
from sqlalchemy import exc

from poolwatch.requests import Account, Terms, current
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from sqlalchemy import Engine, PoolProxiedConnection

    from poolwatch import Watch
    from poolwatch.demo.servers import MariaDB

ROUNDS = 50
TOO_OLD = 600
# The last one is past the cap.
ROUTES = (None, "/a", "/b/{id}", "/c")
# PyMySQL would make a TLS context for each connection, which takes longer than everything else here.
PLAIN = {"ssl_disabled": True}
LOST = (exc.DBAPIError, exc.InvalidRequestError, exc.ResourceClosedError, pymysql.err.Error)


class Crowd:
    """Threads at work, and others that repeat theirs until those have ended; leaving raises their first error."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        self._workers: list[threading.Thread] = []
        self._others: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # By then, those that are not stuck have given up and said why.
        stuck = self._join(self._workers, 2 * DEADLINE)
        self._over.set()
        stuck += self._join(self._others, DEADLINE)
        if self._errors:
            raise self._errors[0]
        assert [] == stuck

    def work(self, work: Callable[[], None]) -> None:
        """Do *work* once, in a thread of its own."""
        self._workers.append(self._start(work))

    def repeat(self, work: Callable[[], None], pause: float) -> None:
        """Do *work* until the workers have ended, with a *pause* before each time."""

        def again() -> None:
            while not self._over.wait(pause):
                work()

        self._others.append(self._start(again))

    def _join(self, threads: list[threading.Thread], seconds: float) -> list[threading.Thread]:
        """Wait for *threads*; return those that have not ended after *seconds*."""
        deadline = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))
        return [thread for thread in threads if thread.is_alive()]

    def _start(self, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001
                self._errors.append(error)

        # One that never ends must not keep the suite from ending.
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread


class Visitor:
    """One thread's seeded way through everything that a caller may do with a connection.

    Args:
        engine: Whose connections it uses.
        seed: Its way's.
        missing: What has not been seen yet of what it is to go on for.
        leaks: It may drop connections.
    """

    def __init__(
        self, engine: Engine, seed: int, missing: Callable[[], Collection[str]], *, leaks: bool = True
    ) -> None:
        self._may_leak = leaks
        self._missing = missing
        self._engine = engine
        self._random = random.Random(seed)  # noqa: S311
        self.timeouts = self.leaks = self.detachings = 0
        self._detached: list[PoolProxiedConnection] = []

    def __call__(self) -> None:
        """Use connections until all rounds are done and nothing is missing."""
        ways = [self._query, self._query, self._linger, self._invalidate, self._condemn, self._detach]
        ways += [self._leak] * self._may_leak
        deadline = time.monotonic() + DEADLINE
        for rounds in count():
            missing = self._missing() if rounds >= ROUNDS else {"rounds"}
            if not missing:
                break
            assert time.monotonic() < deadline, f"never came: {missing}"
            with self._request():
                try:
                    self._random.choice(ways)()
                except exc.TimeoutError:
                    self.timeouts += 1
                except LOST:
                    pass

    @contextmanager
    def _request(self) -> Iterator[None]:
        """Be in a request, or mostly so; what is leaked in it is found later, in any other."""
        route = self._random.choice(ROUTES)
        owner = ("GET", route or "")
        terms = Terms(lambda _: owner, len(ROUTES) - 2, details=True)
        account = Account(object(), terms) if route else None
        current.set(account)
        yield
        if account is not None:
            account.ended = True

    def close(self) -> None:
        """Close what was detached, and let go of it."""
        while self._detached:
            self._detached.pop().close()

    def _query(self) -> None:
        with self._engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
            connection.commit()

    def _linger(self) -> None:
        with self._engine.connect() as connection:
            connection.exec_driver_sql(f"SELECT SLEEP({self._random.choice((0.002, 0.02))})")

    def _invalidate(self) -> None:
        with self._engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
            connection.invalidate()

    def _condemn(self) -> None:
        with self._engine.connect() as connection:
            connection.connection.invalidate(soft=True)

    def _detach(self) -> None:
        connection = self._engine.raw_connection()
        connection.detach()
        self.detachings += 1
        if len(self._detached) < 2:
            self._detached.append(connection)
        else:
            connection.close()

    def _leak(self) -> None:
        cycle: list[Any] = [self._engine.raw_connection()]
        self.leaks += 1
        # So that whichever thread collects garbage next finds it.
        cycle.append(cycle)


class Nature:
    """What happens to connections that nobody who uses them has asked for."""

    def __init__(self, server: MariaDB, watched: Watch) -> None:
        self._admin = pymysql.connect(host="127.0.0.1", port=server.port, user="app", password="app", **PLAIN)  # noqa: S106
        self._watched = watched
        self._random = random.Random(0)  # noqa: S311

    def _records(self) -> list[Any]:
        return [slot.record() for slot in list(self._watched._ledger.slots.values())]

    def kill(self) -> None:
        """Kill one of the pool's connections, if there is one; it may be closed already, or be about to."""
        with suppress(AttributeError, IndexError, pymysql.err.OperationalError):
            self._admin.kill(self._random.choice(self._records()).dbapi_connection.thread_id())

    def close(self) -> None:
        """Close the connection that kills others."""
        self._admin.close()

    def age(self) -> None:
        """Make about half of them too old."""
        for record in self._records():
            if record is not None and self._random.random() < 0.5:
                record.starttime -= TOO_OLD
