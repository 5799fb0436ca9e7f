"""The guard on sync engines and pools of every class; how it is turned on, and what keeps it from working."""

from __future__ import annotations

import logging
import select
import socket
import time
from math import inf
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, event
from sqlalchemy.pool import AssertionPool, NullPool, QueuePool, SingletonThreadPool, StaticPool

from poolwatch import ArgumentTypeError, ConflictError, drivers, sockets, watch
from support import Stubborn, assert_books, moved, quiet

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from poolwatch import Watch
    from poolwatch.demo.servers import MariaDB

LIMIT = 100.0


def guarded(poolclass: type = QueuePool, registry: CollectorRegistry | None = None) -> tuple[Engine, Watch]:
    """Return an engine on SQLite and its watch, with a guard that is told of a limit."""
    engine = create_engine("sqlite://", poolclass=poolclass)
    return engine, watch(engine, guard=True, inactivity_limit=LIMIT, registry=registry or CollectorRegistry())


def use(engine: Engine) -> None:
    """Check a connection out, run a statement, give the connection back."""
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")


@pytest.mark.parametrize("poolclass", [QueuePool, StaticPool, AssertionPool, SingletonThreadPool])
def test_pool_classes(poolclass: type) -> None:
    """A silent connection is replaced once, in whatever pool keeps it."""
    engine, watched = guarded(poolclass)
    use(engine)
    quiet(watched, LIMIT)
    use(engine)
    use(engine)
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert {"guard_deadline": 1} == moved(snapshot.closes_total) == moved(snapshot.reconnects_total)


def test_a_pool_that_keeps_none() -> None:
    """NullPool has nothing to guard."""
    engine, watched = guarded(NullPool)
    use(engine)
    use(engine)
    assert {"unpooled": 2} == moved(watched.snapshot().closes_total)


def test_what_another_caller_has() -> None:
    """A StaticPool's connection stays while somebody holds it, and is replaced afterwards."""
    engine, watched = guarded(StaticPool)
    with engine.connect():
        quiet(watched, LIMIT)
        use(engine)
        assert 1 == watched.snapshot().connects_total
    quiet(watched, LIMIT)
    use(engine)
    assert {"guard_deadline": 1} == moved(watched.snapshot().reconnects_total)


def test_dispose() -> None:
    """The pool that takes over is guarded too."""
    engine, watched = guarded()
    engine.dispose()
    use(engine)
    quiet(watched, LIMIT)
    use(engine)
    assert {"guard_deadline": 1} == moved(watched.snapshot().closes_total)


@pytest.mark.parametrize(("age", "closes"), [(LIMIT - 5, {}), (LIMIT, {"guard_deadline": 1})])
def test_late(age: float, closes: dict[str, int]) -> None:
    """One that was opened before may have been silent all its life."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    use(engine)
    watched = watch(engine, guard=True, inactivity_limit=LIMIT, registry=CollectorRegistry())
    for slot in watched._ledger.slots.values():
        slot.opened_at -= age
    use(engine)
    quiet(watched, 0.0)
    use(engine)
    assert closes == moved(watched.snapshot().closes_total)


@pytest.mark.parametrize("driver", ["pymysql"])
def test_killed(mariadb: MariaDB, registry: CollectorRegistry, driver: str) -> None:
    """Threads' connections too are replaced when the server has closed them."""
    engine = create_engine(mariadb.url(driver), connect_args={"ssl_disabled": True})
    watched = watch(engine, guard=True, registry=registry)
    with engine.connect() as connection:
        number = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()
    mariadb.kill(number)
    use(engine)
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert {"guard_dead": 1} == moved(snapshot.reconnects_total)
    assert {("killed", "guard"): 1} == moved(snapshot.disconnects_total)
    engine.dispose()


def test_turned_on_later(registry: CollectorRegistry) -> None:
    """A second call may turn it on where nobody had an opinion; then it is on, and everybody has."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    watched = watch(engine, registry=registry)
    assert "false" == watched.snapshot().info["guard"]
    assert watched is watch(engine, guard=True, inactivity_limit=LIMIT)
    assert watched is watch(engine, guard=True)
    assert "true" == watched.snapshot().info["guard"]
    use(engine)
    quiet(watched, LIMIT)
    use(engine)
    assert {"guard_deadline": 1} == moved(watched.snapshot().closes_total)
    with pytest.raises(ConflictError, match="guard=True, not False"):
        watch(engine, guard=False)


def test_argument() -> None:
    """It is on or off."""
    with pytest.raises(ArgumentTypeError, match="guard must be bool, got int"):
        watch(create_engine("sqlite://"), guard=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["hang_up", "last_word"])
def test_its_own_error_about_a_dead_one(
    mariadb: MariaDB, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What goes wrong while it is booked or closed is counted, and the connection replaced all the same."""

    def fail(*_: object) -> None:
        raise LookupError

    engine = create_engine(mariadb.url("pymysql"), connect_args={"ssl_disabled": True})
    watched = watch(engine, guard=True, registry=registry)
    with engine.connect() as connection:
        number = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()
    mariadb.kill(number)
    monkeypatch.setattr(drivers.Driver, name, fail)
    use(engine)
    snapshot = watched.snapshot()
    assert {"guard_dead": 1} == moved(snapshot.reconnects_total)
    assert 1 == snapshot.internal_errors_total
    engine.dispose()


def test_where_there_is_no_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows the kernel is not asked, and nothing breaks."""
    monkeypatch.delattr(select, "poll")
    monkeypatch.setattr(sockets, "_CLOSED", 0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        fileno = ours.fileno()
        assert [None] * 4 == [
            sockets.has_ended(fileno),
            sockets.was_reset(fileno),
            sockets.peek(fileno),
            sockets.was_reset(-1),
        ]


def test_its_own_error(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong inside the guard is counted, and the connection handed out."""

    def fail(*_: object) -> None:
        raise LookupError

    engine, watched = guarded(registry=registry)
    use(engine)
    monkeypatch.setattr(drivers.Driver, "is_dead", fail)
    use(engine)
    monkeypatch.undo()
    snapshot = watched.snapshot()
    assert (1, 2, 1) == (snapshot.connects_total, snapshot.checkouts_total, snapshot.internal_errors_total)


def test_listeners_that_raise() -> None:
    """Nobody else's code runs before the checkout can give back the place of a connection that it fails to replace."""
    engine, watched = guarded()
    use(engine)
    quiet(watched, LIMIT)
    raised: list[object] = []

    def fail(*_: Any) -> None:
        if not raised:
            raised.append(None)
            raise LookupError

    for name in ("soft_invalidate", "close"):
        event.listen(engine, name, fail)
    with pytest.raises(LookupError):
        use(engine)
    use(engine)
    assert_books(watched.snapshot())
    assert 1 == sum(moved(watched.snapshot().connections).values())


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, or whatever else ends a thread while we look, does not cost the pool a place."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0)
    watched = watch(engine, guard=True, registry=CollectorRegistry())
    use(engine)
    monkeypatch.setattr(drivers.Driver, "is_dead", interrupt)
    with pytest.raises(KeyboardInterrupt):
        use(engine)
    monkeypatch.undo()
    use(engine)
    snapshot = watched.snapshot()
    assert_books(snapshot)
    assert (1, 2) == (snapshot.connects_total, snapshot.checkouts_total)


def test_a_clock_that_is_set_back_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection that takes the place of one is not replaced too because it seems to be older than the verdict."""
    engine, watched = guarded()
    use(engine)
    quiet(watched, LIMIT)
    now = time.time()
    event.listen(engine, "close", lambda *_: monkeypatch.setattr("time.time", lambda: now - 5))
    for slot in watched._ledger.slots.values():
        record: Any = slot.record()
        record.starttime -= 60
    for _ in range(2):
        use(engine)
    assert {"guard_deadline": 1} == moved(watched.snapshot().closes_total)


def test_no_limit() -> None:
    """A server that says it has none is believed."""
    engine, watched = guarded()
    watched.adjust({"inactivity_limit": None})
    use(engine)
    (slot,) = watched._ledger.slots.values()
    slot.limits = {"idle_session_timeout": inf}
    quiet(watched, 1e9)
    use(engine)
    assert slot.allowance is not None
    assert inf == slot.allowance.outside == slot.allowance.inside
    assert {} == moved(watched.snapshot().closes_total)


def test_a_class_that_cannot_be_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """Then there is no guard, one warning names the pool and a remedy, and the metrics do not claim one."""
    engine, watched = guarded(Stubborn)
    use(engine)
    quiet(watched, LIMIT)
    use(engine)
    snapshot = watched.snapshot()
    assert 1 == snapshot.connects_total
    assert "false" == snapshot.info["guard"]
    assert 0 == snapshot.timeout_risk_connections["idle", "protected"]
    assert watched is watch(engine, guard=True)
    (_, warning) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "'default' is not guarded: the class of Stubborn cannot be extended (not me)" in warning.getMessage()
    assert "pool_pre_ping=True" in warning.getMessage()


def test_a_method_that_was_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """Where a tool has put its own on the pool object, the guard would have no effect, and says so."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    engine.pool._do_get = engine.pool._do_get  # type: ignore[method-assign]
    watched = watch(engine, guard=True, registry=CollectorRegistry())
    assert "false" == watched.snapshot().info["guard"]
    assert "_do_get was replaced on the instance" in caplog.text
