"""What happens to the connections of a pool, acted out on any class of it."""

from __future__ import annotations

import gc
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import exc

from handles import assert_held, assert_true
from support import age, moved

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from poolwatch import PoolSnapshot, Watch
    from poolwatch.demo.servers import MariaDB

TOO_OLD = 61


@dataclass
class Scene:
    """An engine of one pool class on the suite's MariaDB, and its watch."""

    server: MariaDB
    engine: Engine
    watched: Watch
    pause: Callable[[float], object]

    def use(self) -> None:
        """Run one statement on a connection, which may come back as another proxy's."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")

    def use_and_kill(self) -> bool:
        """Run a statement; kill the connection afterwards if the pool has kept it, and return whether it has."""
        with self.engine.connect() as connection:
            number = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()
        kept = self.watched.snapshot().connections["idle"] == 1
        if kept:
            self.server.kill(number)
        return kept

    def check(self, *, beside: int = 0) -> PoolSnapshot:
        """Assert that the books are true at this moment."""
        return assert_held(self.watched, beside=beside)

    def finish(self) -> PoolSnapshot:
        """Assert it again, and that the server agrees."""
        return assert_true(self.server, self.watched, pause=self.pause)


def used_twice(scene: Scene) -> None:
    """One after the other."""
    scene.use()
    scene.check()
    scene.use()


def two_at_once(scene: Scene) -> None:
    """Two callers hold one each, or the same."""
    with scene.engine.connect() as first:
        first.exec_driver_sql("SELECT 1")
        with scene.engine.connect() as second:
            second.exec_driver_sql("SELECT 1")
        scene.check()


def refused_a_second(scene: Scene) -> None:
    """Two callers ask for one each, of a pool that allows one."""
    with scene.engine.connect() as first:
        first.exec_driver_sql("SELECT 1")
        with pytest.raises(AssertionError):
            scene.engine.connect()
        scene.check()


def invalidated(scene: Scene) -> None:
    """The application invalidates a connection it holds."""
    with scene.engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        connection.invalidate()
        scene.check()
    scene.use()


def softly_invalidated(scene: Scene) -> None:
    """The application asks for the connection to be replaced at the next checkout."""
    with scene.engine.connect() as connection:
        connection.connection.invalidate(soft=True)
        scene.check()
    scene.check()
    scene.use()


def leaked(scene: Scene) -> None:
    """A connection is dropped, and the garbage collector finds it."""
    connection = scene.engine.connect()
    connection.exec_driver_sql("SELECT 1")
    del connection
    gc.collect()
    assert 1 == scene.check().leaks_total
    scene.use()


def detached(scene: Scene) -> None:
    """The application takes a connection out of the pool for good."""
    connection = scene.engine.connect()
    connection.detach()
    scene.check(beside=1)
    connection.close()
    scene.check()
    scene.use()


def disposed(scene: Scene) -> None:
    """The engine is disposed of while nobody holds a connection."""
    scene.use()
    scene.engine.dispose()
    scene.check()
    scene.use()


def disposed_while_held(scene: Scene) -> None:
    """The engine is disposed of while a caller holds a connection, who gives it back afterwards."""
    connection = scene.engine.connect()
    connection.exec_driver_sql("SELECT 1")
    connection.commit()
    scene.engine.dispose()
    scene.check()
    # An AssertionPool complains of a return that it no longer expects.
    with suppress(AssertionError):
        connection.close()
    # Else it lies in the abandoned pool until that is collected.
    del connection
    gc.collect()
    scene.check()
    scene.use()


def recycled(scene: Scene) -> None:
    """What the pool keeps becomes older than pool_recycle."""
    scene.use()
    age(scene.watched, TOO_OLD)
    scene.check()
    scene.use()


def killed(scene: Scene) -> None:
    """What the pool keeps is lost, and the next caller's statement meets it, where the pool keeps anything."""
    if scene.use_and_kill():
        with pytest.raises(exc.OperationalError):
            scene.use()
    scene.use()


def killed_and_pinged(scene: Scene) -> None:
    """As above, but the pool pings first and nobody meets it."""
    scene.use_and_kill()
    scene.use()


def refused(scene: Scene) -> None:
    """The server refuses to let us in, then lets us."""
    user = "ALTER USER app@'127.0.0.1' ACCOUNT"
    scene.server.query(f"{user} LOCK")
    try:
        for _ in range(2):
            with pytest.raises(exc.OperationalError):
                scene.use()
        # PyMySQL 1.1 leaves the socket to the garbage collector.
        gc.collect()
        assert {"connect": 2} == moved(scene.check().checkout_failures_total)
    finally:
        scene.server.query(f"{user} UNLOCK")
    scene.use()
