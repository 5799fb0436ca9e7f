"""The listeners that every checkout and return passes through, written for speed.

Each is one function with its own guard: a shared one would be a second call. They handle the ordinary case and leave
the rest to :class:`~poolwatch.listeners.PoolListeners`. A record that is not known raises KeyError, which is ours to
ignore: it was opened before we listened and not yet handed out since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

from poolwatch.ledger import FOLD_AT
from poolwatch.requests import current
from poolwatch.traces import here
from poolwatch.trouble import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolwatch.ledger import Ledger
    from poolwatch.slot import Slot

# Marks an exception that leaves a listener on purpose.
MEANT = "poolwatch_meant"


def ignore(_reference: object) -> None:
    """Do nothing about an object that is gone."""


def checkout_listener(
    ledger: Ledger, rest: Callable[[Any, Any], None], *, pre_ping: bool, timed: bool
) -> Callable[[Any, Any, Any], None]:
    """Return the ``checkout`` listener; *rest* takes the first checkout of a connection, and unknown records."""
    clock, trouble, key = ledger.clock, ledger.trouble, ledger.key
    request = current.get

    def on_checkout(dbapi: Any, record: Any, proxy: Any) -> None:
        try:
            slot: Slot | None = record.record_info.get(key)
            if slot is None or not slot.asked:
                rest(dbapi, record)
                slot = record.record_info[key]
            elif pre_ping:
                now, active = clock(), slot.active
                if active is not None and now - active > ledger.survived:
                    ledger.survived = now - active
                slot.active = now
            slot.arrived = True
            slot.caller = caller = request()
            # With a callback, because Python 3.15 clears those without one too late for us to see.
            slot.proxy = ref(proxy, ignore)
            if caller is not None:
                # First, lest a stack that cannot be read leave that of an earlier checkout.
                slot.trace = ()
                slot.trace = here() if caller.terms.traces else ()
        except Exception as error:
            if getattr(error, MEANT, False):
                raise
            trouble(describe("checkout", error))

    def on_untimed_checkout(dbapi: Any, record: Any, proxy: Any) -> None:
        on_checkout(dbapi, record, proxy)
        try:
            ledger.count("checkouts_total")
            ledger.handed_out(record.record_info[key], clock())
        except Exception as error:  # noqa: BLE001
            trouble(describe("checkout", error))

    return on_checkout if timed else on_untimed_checkout


def checkin_listener(
    ledger: Ledger, rest: Callable[[Slot, Any, float | None], None], *, resets: bool
) -> Callable[[Any, Any], None]:
    """Return the ``checkin`` listener; *rest* takes lost and leaked connections.

    *resets*: something is sent on return: by the pool, or just before by the Connection that was closed. Not so after
    an error, which may have ended the transaction.
    """
    clock, trouble, key = ledger.clock, ledger.trouble, ledger.key
    observe, backlog = ledger.holds.observe, ledger.holds.backlog
    note, noted = ledger.usage.note, ledger.usage.backlog

    def on_checkin(dbapi: Any, record: Any) -> None:
        try:
            slot: Slot = record.record_info[key]
            # In this order: who reads meanwhile sees no hold that is longer than it was.
            account, held, slot.held = slot.account, slot.held, None
            slot.returned = now = clock()
            if held is not None:
                if account is None:
                    observe(now - held)
                else:
                    note((account, now - held))
                    account.gave_back(slot, now - held)
                if len(backlog) >= FOLD_AT or len(noted) >= FOLD_AT:
                    ledger.relieve()
            slot.began = False
            if dbapi is None or slot.proxy() is None:
                rest(slot, dbapi, held)
            if resets and not slot.failed:
                slot.active = now
        except KeyError:
            pass
        except Exception as error:  # noqa: BLE001
            trouble(describe("checkin", error))

    return on_checkin
