"""Other tools on the same pool: whoever came first or leaves first, we count once and break nothing of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, event
from sqlalchemy.pool import Pool, QueuePool

from handles import assert_true
from poolwatch import ConflictError, watch
from support import moved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from poolwatch import Watch
    from poolwatch.demo.servers import MariaDB


class Theirs:
    """Another tool that counts checkouts by replacing the pool's class, and gives back what it found."""

    def __init__(self) -> None:
        self.seen = 0
        self._found: type[Pool] | None = None

    def install(self, engine: Engine) -> None:
        """Put a class over the pool's."""
        self._found = found = type(engine.pool)
        tool = self

        class Counting(found):  # type: ignore[misc, valid-type]
            def connect(self) -> Any:
                tool.seen += 1
                return super().connect()

        engine.pool.__class__ = Counting

    def remove(self, engine: Engine) -> None:
        """Give the pool the class that was found, whatever it has now."""
        assert self._found is not None
        engine.pool.__class__ = self._found


@pytest.fixture
def engine(mariadb: MariaDB) -> Iterator[Engine]:
    """Return a sync engine on the suite's MariaDB."""
    made = create_engine(mariadb.url("pymysql"), connect_args={"ssl_disabled": True})
    yield made
    made.dispose()


def use(engine: Engine) -> None:
    """Use one connection."""
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")


@pytest.mark.parametrize("dispose", [False, True])
@pytest.mark.parametrize("ours_leave_first", [False, True])
@pytest.mark.parametrize("ours_come_first", [False, True])
def test_another_class(
    mariadb: MariaDB,
    engine: Engine,
    registry: CollectorRegistry,
    *,
    ours_come_first: bool,
    ours_leave_first: bool,
    dispose: bool,
) -> None:
    """Each tool sees each checkout once while it is there, dispose() or not, and in the end both are gone."""
    theirs = Theirs()
    if ours_come_first:
        watched = watch(engine, registry=registry)
        theirs.install(engine)
    else:
        theirs.install(engine)
        watched = watch(engine, registry=registry)
    use(engine)
    if dispose:
        engine.dispose()
    use(engine)
    assert (2, 2) == (theirs.seen, assert_true(mariadb, watched).checkouts_total)
    if ours_leave_first:
        watched.close()
        use(engine)
        assert 3 == theirs.seen
        theirs.remove(engine)
    else:
        theirs.remove(engine)
        use(engine)
        assert 2 == theirs.seen
        if ours_come_first:
            # What they found was ours.
            assert 3 == assert_true(mariadb, watched).checkouts_total
        watched.close()
    for _ in range(2):
        use(engine)
        engine.dispose()
    assert (3 if ours_leave_first else 2) == theirs.seen
    assert 0 == len(list(engine.pool.dispatch.checkout))
    # Watched anew, whatever class was left on the pool.
    again = watch(engine, registry=registry)
    use(engine)
    assert 1 == assert_true(mariadb, again).checkouts_total
    again.close()


def wrap(engine: Engine, method: str) -> list[str]:
    """Wrap a *method* of the pool object; return a list that gets an entry for each call."""
    seen: list[str] = []
    wrapped: Callable[[], Any] = getattr(engine.pool, method)

    def wrapper() -> Any:
        seen.append(method)
        return wrapped()

    setattr(engine.pool, method, wrapper)
    return seen


@pytest.mark.parametrize(("method", "ours_come_first"), [("connect", True), ("_do_get", True), ("_do_get", False)])
def test_wrapped_instance(
    mariadb: MariaDB, engine: Engine, registry: CollectorRegistry, *, method: str, ours_come_first: bool
) -> None:
    """A tool that wraps a method of the pool object keeps working beside us, and its wrapper goes with dispose()."""
    seen = [] if ours_come_first else wrap(engine, method)
    watched = watch(engine, registry=registry)
    if ours_come_first:
        seen = wrap(engine, method)
    use(engine)
    use(engine)
    assert (2, 2) == (len(seen), assert_true(mariadb, watched).checkouts_total)
    engine.dispose()
    use(engine)
    assert (2, 3) == (len(seen), assert_true(mariadb, watched).checkouts_total)
    watched.close()
    assert QueuePool is type(engine.pool)


def test_connect_that_was_wrapped_before_us(
    engine: Engine, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrapper that hides every class's connect() costs the families that time it, and no checkout."""
    seen = wrap(engine, "connect")
    watched = watch(engine, registry=registry)
    for _ in range(2):
        use(engine)
        snapshot = watched.snapshot()
        assert len(seen) == snapshot.checkouts_total == snapshot.hold_duration_seconds.count
    assert 2 == len(seen)
    assert None is snapshot.checkout_duration_seconds
    assert ["the instance" in record.getMessage() for record in caplog.records] == [True]
    engine.dispose()
    use(engine)
    snapshot = watched.snapshot()
    assert (3, 2, {"disposed": 1}) == (
        snapshot.checkouts_total,
        snapshot.connects_total,
        moved(snapshot.closes_total),
    )


def test_wrapped_instance_after_we_left(engine: Engine, registry: CollectorRegistry) -> None:
    """A wrapper around our method outlives our watch and passes through."""
    watched = watch(engine, registry=registry)
    wrapped, seen = engine.pool.connect, []
    engine.pool.connect = lambda: (seen.append(1), wrapped())[1]  # type: ignore[func-returns-value, method-assign]
    use(engine)
    watched.close()
    use(engine)
    assert [1, 1] == seen
    assert 0 == len(list(engine.pool.dispatch.checkout))


def test_one_pool_one_registry(mariadb: MariaDB, engine: Engine, registry: CollectorRegistry) -> None:
    """A pool that is watched is not watched in a second registry until the first watch is closed."""
    second = CollectorRegistry()
    watched: Watch = watch(engine, registry=registry)
    with pytest.raises(ConflictError, match="another registry"):
        watch(engine, registry=second)
    use(engine)
    assert 1 == assert_true(mariadb, watched).checkouts_total
    watched.close()
    watched = watch(engine, registry=second)
    use(engine)
    assert (1, 1) == (assert_true(mariadb, watched).checkouts_total, watched.snapshot().connects_total)
    watched.close()
    assert QueuePool is type(engine.pool)


@pytest.mark.parametrize("insert", [False, True])
def test_listeners_that_use_the_engine(
    mariadb: MariaDB, engine: Engine, registry: CollectorRegistry, *, insert: bool
) -> None:
    """A listener of another tool that opens a second connection in a pool event does not confuse the two."""
    watched = watch(engine, registry=registry)
    inside = iter([True])

    @event.listens_for(engine, "checkin", insert=insert)
    def audit(_dbapi: Any, _record: Any) -> None:
        if next(inside, False):
            use(engine)

    use(engine)
    use(engine)
    assert 3 == assert_true(mariadb, watched).checkouts_total


def test_record_that_is_used_again_before_its_detach_is_told(
    mariadb: MariaDB, engine: Engine, registry: CollectorRegistry
) -> None:
    """SQLAlchemy returns the record of a detached connection before it fires the event; threads may come in between."""
    watched = watch(engine, registry=registry)
    others: list[Any] = []

    @event.listens_for(engine, "detach", insert=True)
    def take_it(_dbapi: Any, _record: Any) -> None:
        others.append(engine.connect())

    detached = engine.connect()
    detached.detach()
    snapshot = assert_true(mariadb, watched, beside=1)
    assert (2, 2, {"detached": 1}) == (
        snapshot.connects_total,
        snapshot.checkouts_total,
        moved(snapshot.closes_total),
    )
    for each in (detached, *others):
        each.close()
    assert 1 == assert_true(mariadb, watched).connections["idle"]


def test_read_before_a_detach_is_told(mariadb: MariaDB, engine: Engine, registry: CollectorRegistry) -> None:
    """Whoever reads in between books the same."""
    watched = watch(engine, registry=registry)
    event.listen(engine, "detach", lambda *_: watched.snapshot(), insert=True)
    with engine.connect() as connection:
        connection.detach()
        snapshot = assert_true(mariadb, watched, beside=1)
        assert ({"detached": 1}, 0) == (moved(snapshot.closes_total), snapshot.leaks_total)
    assert_true(mariadb, watched)
