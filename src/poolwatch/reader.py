"""Turns a ledger, the live records and their sockets into a snapshot.

Gauges are asked of SQLAlchemy's records when somebody reads, never kept by counting up and down. Nothing here checks
out a connection, sends a query or waits for the database.
"""

from __future__ import annotations

import threading
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

from poolwatch import checks, drivers, privates, server
from poolwatch.catalog import BY_FIELD
from poolwatch.labels import CHECKS
from poolwatch.snapshot import Connection, PoolSnapshot, census
from poolwatch.trouble import describe

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Engine
    from sqlalchemy.engine import Dialect
    from sqlalchemy.pool import ConnectionPoolEntry

    from poolwatch.ledger import Ledger
    from poolwatch.losses import Losses
    from poolwatch.slot import Slot


class PoolReader:
    """Reads one pool.

    Args:
        ledger: The pool's books.
        dialect: The engine's.
        losses: Its lost connections.
        timed: ``pool.connect()`` is timed; otherwise the families that need it are ``None``.
        processes: How many worker processes have a pool like this; ``None`` if unknown.
    """

    def __init__(self, ledger: Ledger, dialect: Dialect, losses: Losses, *, timed: bool, processes: int | None) -> None:
        self._ledger = ledger
        self._driver = drivers.driver_of(dialect)
        self._losses = losses
        self._timed = timed
        self._processes = processes
        self.restart()
        self.configure(guard=False, per_connection=False)

    def restart(self) -> None:
        """Forget who is reading, in a forked child; a thread that is not there may have been."""
        self._lock = threading.Lock()

    def configure(self, *, guard: bool, per_connection: bool) -> None:
        """Say what the operator wants.

        Args:
            guard: Checkouts replace connections that are dead or about to be.
            per_connection: Fill the families that have one series for each connection.
        """
        self._guard = guard
        self._per_connection = per_connection

    def read(self, engine: Engine) -> tuple[PoolSnapshot, str | None]:
        """Return a snapshot of *engine*'s pool, and the first error of our own if there was one."""
        with self._lock:
            self._reap(engine)
            settings = privates.settings(engine.pool)
            live = list(self._live(engine, settings))
            self._losses.settle()
            return self._snapshot(engine, settings, live)

    def _reap(self, engine: Engine) -> None:
        """Book what no event reported: connections that are gone, or that no caller can ever reach again."""
        ledger = self._ledger
        # Not items(): its tuples let the garbage collector in, whose listeners change the dictionary.
        for slot in list(ledger.slots.values()):
            # In this order: a checkout that closes a connection is pending before and after.
            serial, record, retiring, pending = slot.serial, slot.record(), slot.retiring, ledger.pending[:]
            abandoned = slot.pool() is not engine.pool
            if retiring is not None:
                # A checkout would still be under way, to connect it again.
                if record is None or (self._timed and not pending):
                    # Among threads, a return whose place has become free again is seen by the pool that goes on.
                    returned = retiring.full or not (abandoned or engine.dialect.is_async)
                    # Some pools close on dispose() what a caller still holds.
                    ledger.lost(slot, "overflow" if returned else "disposed", serial)
            elif record is None or (record.dbapi_connection is None and slot.retiring is None):
                # Of one that is held, the detach event is about to come; its record outlives that.
                detaching = slot.held is not None and record is not None
                reason = "detached" if detaching else "disposed" if abandoned else slot.dropped
                ledger.lost(slot, "failed" if slot.fresh else reason, serial)
            elif abandoned and not record.in_use and slot.pool() not in pending:
                ledger.closed(slot, "disposed", serial)
            elif self._timed and slot.arrived and record.in_use and slot.pool() not in ledger.pending and slot.arrived:
                # Handed out to a caller who began to wait before we timed.
                ledger.checkouts.observe(0.0)
                ledger.handed_out(slot, ledger.clock())

    def _live(self, engine: Engine, settings: privates.PoolSettings) -> Iterator[tuple[Slot, Connection]]:
        ledger = self._ledger
        for slot in list(ledger.slots.values()):
            record = slot.record()
            if record is None or record.dbapi_connection is None or slot.opened is None:
                continue
            if not record.in_use and slot.pool() is not engine.pool:
                continue
            state, condemned = self._state(slot, record)
            limits = {**slot.limits, **ledger.configured}
            limit = server.limit_of(limits, in_transaction=self._in_transaction(slot, record))
            # Copied first: other threads change them.
            active, held = slot.active, slot.held
            yield (
                slot,
                Connection(
                    state=state,
                    created=slot.opened_at,
                    held_since=None if held is None or state != "checked_out" else ledger.moment(held),
                    last_activity=None if active is None else ledger.moment(active),
                    limit=limit,
                    protected=state != "checked_out"
                    and (
                        condemned or self._notices(slot, settings) or (state != "dead" and _recycles(settings, limit))
                    ),
                ),
            )

    def _state(self, slot: Slot, record: ConnectionPoolEntry) -> tuple[str, bool]:
        """Return the state, and whether the next checkout replaces the connection, which holds of dead ones too."""
        if record.in_use:
            return "checked_out", False
        condemned = privates.retirement(record) is not None
        # While a connection is being set up or given back, answers may be on their way.
        if not slot.fresh and slot.held is None and self._ask_driver(self._driver.is_dead, record):
            if slot.ended is None:
                slot.ended = self._ledger.clock()
            return "dead", condemned
        slot.ended = None
        return "condemned" if condemned else "idle", condemned

    def _notices(self, slot: Slot, settings: privates.PoolSettings) -> bool:
        return self._guard or (settings.pre_ping and slot.pings)

    def _in_transaction(self, slot: Slot, record: ConnectionPoolEntry) -> bool:
        told = self._ask_driver(self._driver.in_transaction, record)
        return slot.began if told is None else told

    def _ask_driver(self, question: Callable[[Any], bool | None], record: ConnectionPoolEntry) -> bool | None:
        try:
            return question(record.driver_connection)
        except Exception as error:  # noqa: BLE001
            # Another thread may have closed it meanwhile.
            if record.dbapi_connection is not None:
                self._ledger.trouble(describe(question.__name__, error))
            return None

    def _snapshot(
        self, engine: Engine, settings: privates.PoolSettings, live: list[tuple[Slot, Connection]]
    ) -> tuple[PoolSnapshot, str | None]:
        ledger = self._ledger
        counts, durations, trouble = ledger.read()
        optional: dict[str, Any] = self._by_slot(settings, live) if self._per_connection else {}
        routes: dict[str, Any] = dict(ledger.read_usage())
        if not self._timed:
            routes.pop("route_checkout_seconds_total", None)
        found = census((connection for _, connection in live), ledger.wall())
        limits: dict[str, float] = dict(ledger.configured)
        for slot, _ in live:
            for source, seconds in slot.limits.items():
                limits[source] = min(seconds, limits.get(source, inf))
        fatal = ledger.deadly()
        problems = checks.find(
            checks.Facts(
                settings=settings,
                guard=self._guard,
                sees_death=self._driver.sees_death,
                pings=all(slot.pings for slot, _ in live),
                asked=any(slot.asked for slot, _ in live),
                served=server.is_served(engine.dialect, engine.url),
                idle_limit=server.limit_of(limits, in_transaction=False),
                fatal=fatal,
                max_connections=ledger.max_connections,
                processes=self._processes,
            )
        )
        checkout_durations = durations["checkout_duration_seconds"]
        snapshot = PoolSnapshot(
            connections=found.connections,
            timeout_risk_connections=found.timeout_risk_connections,
            pending_checkouts=len(ledger.pending) if self._timed else None,
            size=settings.size,
            connections_limit=settings.limit,
            recycle_seconds=settings.recycle,
            checkout_timeout_seconds=settings.timeout,
            info=_info(engine, settings, guard=self._guard),
            next_deadline_timestamp_seconds=found.next_deadline_timestamp_seconds,
            oldest_connection_timestamp_seconds=found.oldest_connection_timestamp_seconds,
            longest_hold_timestamp_seconds=found.longest_hold_timestamp_seconds,
            inactivity_limit_seconds=limits,
            server_max_connections=ledger.max_connections,
            longest_survived_inactivity_seconds=ledger.survived or None,
            shortest_fatal_inactivity_seconds=fatal,
            config_problem=dict.fromkeys(CHECKS, 0) | {problem.check: 1 for problem in problems},
            checkouts_total=counts["checkouts_total",],
            checkout_waits_total=counts["checkout_waits_total",] if self._timed else None,
            checkout_failures_total=_by_label("checkout_failures_total", counts) if self._timed else None,
            connects_total=counts["connects_total",],
            connect_failures_total=counts["connect_failures_total",] if self._timed else None,
            reconnects_total=_by_label("reconnects_total", counts),
            closes_total=_by_label("closes_total", counts),
            invalidations_total=_by_label("invalidations_total", counts),
            disconnects_total=_by_labels("disconnects_total", counts),
            pre_pings_total=counts["pre_pings_total",],
            pre_ping_seconds_total=ledger.pings.snapshot().sum,
            leaks_total=counts["leaks_total",],
            unreturned_total=counts["unreturned_total",],
            internal_errors_total=counts["internal_errors_total",],
            checkout_duration_seconds=checkout_durations if self._timed else None,
            connect_duration_seconds=durations["connect_duration_seconds"],
            hold_duration_seconds=durations["hold_duration_seconds"],
            idle_duration_seconds=durations["idle_duration_seconds"],
            connection_lifetime_seconds=durations["connection_lifetime_seconds"],
            **routes,
            **optional,
        )
        return snapshot, trouble

    def _by_slot(
        self, settings: privates.PoolSettings, live: list[tuple[Slot, Connection]]
    ) -> dict[str, Mapping[str, float]]:
        taken = {slot.number for slot, _ in live}
        free = (number for number in count() if number not in taken)
        created: dict[str, float] = {}
        active: dict[str, float] = {}
        deadline: dict[str, float] = {}
        for slot, connection in sorted(live, key=lambda pair: pair[1].created):
            if slot.number is None:
                slot.number = next(free)
            if slot.number >= settings.limit:
                continue
            label = str(slot.number)
            created[label] = connection.created
            if connection.last_activity is not None:
                active[label] = connection.last_activity
            if connection.deadline is not None:
                deadline[label] = connection.deadline
        return {
            "connection_created_timestamp_seconds": created,
            "connection_last_activity_timestamp_seconds": active,
            "connection_deadline_timestamp_seconds": deadline,
        }


def _recycles(settings: privates.PoolSettings, limit: float | None) -> bool:
    # Of a living connection: it will be too old before it reaches its limit. One that is dead already may be young.
    return limit is not None and settings.recycle < limit


def _by_label(field: str, counts: Counter[tuple[str, ...]]) -> dict[str, int]:
    (label,) = BY_FIELD[field].labels
    return {value: counts[field, value] for value in label.values}


def _by_labels(field: str, counts: Counter[tuple[str, ...]]) -> dict[tuple[str, str], int]:
    first, second = BY_FIELD[field].labels
    return {(a, b): counts[field, a, b] for a in first.values for b in second.values}


def _info(engine: Engine, settings: privates.PoolSettings, *, guard: bool) -> dict[str, str]:
    facts: dict[str, Any] = {
        "dialect": engine.dialect.name,
        "driver": drivers.name_of(engine.dialect),
        "pool_class": type(engine.pool).__name__,
        "server": server.address(engine.url),
        "pre_ping": str(settings.pre_ping).lower(),
        "guard": str(guard).lower(),
        "lifo": str(settings.lifo).lower(),
    }
    return facts
