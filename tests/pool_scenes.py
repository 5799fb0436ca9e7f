"""What happens to the connections of a pool, acted out on any class of it."""

from __future__ import annotations

import gc
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, exc
from sqlalchemy.pool import StaticPool

from handles import assert_held, assert_true, wait_for
from support import age, moved

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from poolwatch import PoolSnapshot, Watch
    from poolwatch.demo.servers import MariaDB
    from random_driver import Driver

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

    def wait_for_silence(self) -> None:
        """Wait until the server has dropped every connection."""
        wait_for(lambda: not self.server.connections(), "the server dropping silent connections", self.pause)

    def listen_once(self, name: str, error: type[Exception]) -> None:
        """Let the application listen to *name*, and raise *error* when it is first called."""
        errors = [error]

        def find_fault(*_: object) -> None:
            if errors:
                raise errors.pop()

        event.listen(self.engine, name, find_fault)

    def check(self, *, beside: int = 0) -> PoolSnapshot:
        """Assert that the books are true at this moment."""
        return assert_held(self.watched, beside=beside)

    def finish(self) -> PoolSnapshot:
        """Assert it again, and that the server agrees."""
        return assert_true(self.server, self.watched, pause=self.pause)


@dataclass
class FileScene(Scene):
    """The same on a file, with a driver that knows its connections."""

    server: Driver  # type: ignore[assignment]

    def check(self, *, beside: int = 0) -> PoolSnapshot:
        """Assert that the books are true at this moment."""
        closes = self.watched.snapshot().closes_total
        # What SQLAlchemy drops without closing it stays open here, where each is kept.
        if not self.engine.dialect.has_terminate:
            beside = closes["leaked"] + closes["detached"]
        if isinstance(self.engine.pool, StaticPool):
            beside += closes["soft_invalidated"]
        return assert_held(self.watched, beside=beside, held=self.server.open)

    def finish(self) -> PoolSnapshot:
        """Assert it again."""
        return self.check()


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


def one_of_two_killed(scene: Scene) -> None:
    """Of two that the pool keeps, the one that is next is lost; whoever meets it condemns the other."""
    with scene.engine.connect() as first:
        first.exec_driver_sql("SELECT 1")
        killed = scene.use_and_kill()
    assert killed
    with pytest.raises(exc.OperationalError):
        scene.use()
    assert 1 == scene.check().connections["condemned"]
    for _ in range(2):
        scene.use()


def silent(scene: Scene) -> None:
    """The server drops what the pool keeps for its silence, and the next caller's statement meets it."""
    with scene.engine.connect() as connection:
        connection.exec_driver_sql("SET SESSION wait_timeout = 1")
    scene.wait_for_silence()
    with pytest.raises(exc.OperationalError):
        scene.use()
    scene.check()
    scene.use()


def silent_while_held(scene: Scene) -> None:
    """It drops what a caller holds, whose next statement meets it."""
    with scene.engine.connect() as connection:
        connection.exec_driver_sql("SET SESSION wait_timeout = 1")
        scene.wait_for_silence()
        with pytest.raises(exc.OperationalError):
            connection.exec_driver_sql("SELECT 1")
        scene.check()
    scene.use()


def fails_at_checkout(scene: Scene) -> None:
    """The application's own listener raises at a checkout."""
    scene.listen_once("checkout", LookupError)
    with pytest.raises(LookupError):
        scene.use()
    scene.check()
    scene.use()


def rejected_at_checkout(scene: Scene) -> None:
    """It asks for another connection, which the same caller gets."""
    scene.listen_once("checkout", exc.DisconnectionError)
    scene.use()
    scene.check()
    scene.use()


def not_reset(scene: Scene) -> None:
    """It raises when a connection is to be reset, which the caller does not hear of."""
    scene.listen_once("reset", LookupError)
    scene.use()
    scene.check()
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
