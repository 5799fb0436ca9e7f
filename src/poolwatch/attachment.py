"""One watched pool: listeners, timed pool class and reader, attached to an engine and taken off again."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import time
import weakref
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy.pool import ConnectionPoolEntry

from poolwatch import classes, privates
from poolwatch.checks import worker_processes
from poolwatch.errors import WatchClosedError
from poolwatch.guard import Guard
from poolwatch.ledger import Ledger
from poolwatch.listeners import PoolListeners
from poolwatch.losses import Losses
from poolwatch.reader import PoolReader
from poolwatch.timing import TimedPool
from poolwatch.trouble import describe
from poolwatch.unreturned import settle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from sqlalchemy import Engine

    from poolwatch.slot import Slot
    from poolwatch.snapshot import PoolSnapshot

logger = logging.getLogger("poolwatch")


class Watch:
    """One watched pool; made by :func:`watch`, ended by :meth:`close` or by leaving its ``with`` block."""

    def __init__(  # noqa: PLR0913
        self,
        engine: Engine,
        *,
        name: str,
        options: dict[str, Any],
        forget: Callable[[Watch], None],
        after: Watch | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.options = options
        self._forget = forget
        self._engine = weakref.ref(engine)
        self._closed = self._attached = self._logged = False
        self._successor: Watch | None = None
        self._ledger = Ledger(clock=clock, wall=wall)
        self.name = name
        self._prepare(engine)
        if after is None:
            self._attach(engine)
        else:
            # SQLAlchemy's lists of listeners must not change while a caller stands in one of them.
            after._successor = self  # noqa: SLF001

    def __repr__(self) -> str:
        return f"<Watch {self.name!r}{' closed' if self._closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The value of the label ``pool``."""
        return self._ledger.name

    @name.setter
    def name(self, name: str) -> None:
        self._ledger.name = name

    @property
    def leaving(self) -> bool:
        """Whether it was closed while callers were inside ``pool.connect()``, and still listens for their sake."""
        return self._closed and self._attached

    @property
    def engine(self) -> Engine | None:
        """The watched engine, a sync one; ``None`` once it was collected as garbage."""
        return self._engine()

    def snapshot(self) -> PoolSnapshot:
        """Return what the pool looks like now; asks neither the pool nor the server for a connection.

        Raises:
            WatchClosedError: This watch was closed, or its engine is gone.
        """
        engine = self._engine()
        if self._closed or engine is None:
            msg = f"pool {self.name!r} is no longer watched; call watch(engine) again"
            raise WatchClosedError(msg)
        settle(self._ledger)
        snapshot, trouble = self._reader.read(engine)
        if trouble is not None:
            self._log(trouble)
        return snapshot

    def _log(self, trouble: str) -> None:
        if not self._logged:
            self._logged = True
            logger.error(
                "poolwatch: an error of its own was kept from the application, pool %r: %s. The figures may be off;"
                " please report it. Further ones are only counted.",
                self.name,
                trouble,
            )

    def adjust(self, given: Mapping[str, Any]) -> None:
        """Take over options that nobody had an opinion on before."""
        self.options |= given
        self._listeners.question.enabled = self.options["server_limits"] is not False
        if self.options["guard"] and self._guard.installed is None:
            self._install_guard()
        limit = self.options["inactivity_limit"]
        self._ledger.configured = {} if limit is None else {"configured": limit}
        self._reader.configure(guard=bool(self._guard.installed), per_connection=bool(self.options["per_connection"]))

    def collect(self) -> PoolSnapshot | None:
        """Return a snapshot for a scrape; ``None`` if there is none to be had."""
        try:
            return self.snapshot()
        except WatchClosedError:
            return None
        except Exception as error:  # noqa: BLE001
            # Logged here: the family that counts it is lost with the pool's others.
            trouble = describe("snapshot", error)
            self._log(trouble)
            self._ledger.trouble(trouble)
            return None

    def forked(self) -> None:
        """Begin anew in a forked child: what the parent has open, and what it counted, is not the child's."""
        ledger = self._ledger
        try:
            slots = list(ledger.slots.values())
            ledger.restart()
            self._losses.restart()
            self._guard.restart()
            self._reader.restart()
            self._forget_slots(slots)
            if self._listeners.is_async:
                _never_collect([_inherited(slot) for slot in slots])
            if self.leaving:
                # Those it waited for are threads and tasks that the child does not have.
                self._detach()
        except Exception as error:  # noqa: BLE001
            ledger.trouble(describe("fork", error))

    def close(self) -> None:
        """Stop listening, remove the series and give the pool its class back. A second call does nothing.

        Where callers are inside ``pool.connect()`` at this moment, the listeners stay until the last has left. A task
        or thread that stands in somebody else's listener to a return, a statement, a COMMIT or a ROLLBACK at this
        moment is not known to us: SQLAlchemy's lists of listeners must not change then, so close when the engine is
        not in use.
        """
        if self._closed:
            return
        self._closed = True
        if self._timer.stop():
            self._detach()
        self._forget(self)

    def _prepare(self, engine: Engine) -> None:
        pool = engine.pool
        self._timer = TimedPool(self._ledger, leave=self._detach)
        try:
            self._timer.install(pool)
        except TypeError as error:
            logger.warning(
                "poolwatch: pool %r: the class of %s cannot be extended (%s), so pending checkouts, waits, failures and"
                " checkout durations are not exported",
                self.name,
                type(pool).__name__,
                error,
            )
        self._losses = Losses(self._ledger, engine.dialect)
        settings = privates.settings(pool)
        self._guard = Guard(self._ledger, engine.dialect, self._losses, resets=settings.resets)
        self._listeners = PoolListeners(
            self._ledger,
            engine.dialect,
            settings,
            self._losses,
            timed=self._timer.installed,
        )
        self._reader = PoolReader(
            self._ledger,
            engine.dialect,
            self._losses,
            timed=self._timer.installed,
            # By it uvicorn and gunicorn learn how many processes to start, unless they are told otherwise.
            processes=worker_processes(os.environ.get("WEB_CONCURRENCY")),
        )
        self.adjust({})

    def _install_guard(self) -> None:
        engine = self._engine()
        if engine is None:
            return
        try:
            self._guard.install(engine.pool, self._timer.stopped)
        except TypeError as error:
            logger.warning(
                "poolwatch: pool %r is not guarded: the class of %s cannot be extended (%s); pool_pre_ping=True does"
                " without",
                self.name,
                type(engine.pool).__name__,
                error,
            )

    def _attach(self, engine: Engine) -> None:
        self._attached = True
        try:
            self._listeners.attach(engine)
            for record in gc.get_referrers(engine.pool):
                if isinstance(record, ConnectionPoolEntry) and record.dbapi_connection is not None:
                    self._adopt(record)
        except Exception:
            self._timer.stop()
            self._detach()
            raise

    def _adopt(self, record: ConnectionPoolEntry) -> None:
        slot = self._listeners.adopt(record)
        if record.in_use:
            # How long it took to get is not known; the checkout is counted all the same.
            if self._timer.installed:
                self._ledger.checkouts.observe(0.0)
            else:
                self._ledger.count("checkouts_total")
            self._ledger.handed_out(slot, self._ledger.clock())
            slot.proxy = privates.proxy_reference(record)

    def _detach(self) -> None:
        engine = self._engine()
        successor, self._successor = self._successor, None
        self._attached = False
        if engine is not None:
            self._listeners.detach(engine)
            classes.restore(engine.pool)
        self._forget_slots(list(self._ledger.slots.values()))
        if engine is not None and successor is not None and not successor._closed:  # noqa: SLF001
            successor._attach(engine)  # noqa: SLF001

    def _forget_slots(self, slots: list[Slot]) -> None:
        for slot in slots:
            record = slot.record()
            if record is not None and record.record_info is not None:
                record.record_info.pop(self._ledger.key, None)


def _inherited(slot: Slot) -> tuple[object, object]:
    record = slot.record()
    return None if record is None else record.driver_connection, slot.proxy()


def _never_collect(things: list[tuple[object, object]]) -> None:
    """Keep the parent's connections in a forked child for as long as it lives, the interpreter's end included.

    Parent and child share the event loop's epoll set: a transport that is closed in the child, which is what its
    collection amounts to, leaves that set for both, and the parent waits for ever for an answer that is there.
    """
    # One reference more than anybody will give back: at the end even a module's own list is emptied.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(things))
