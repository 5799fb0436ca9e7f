"""From SQLAlchemy's records and Connections to the ledger's slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolwatch import privates
from poolwatch.slot import Slot

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.pool import ConnectionPoolEntry

    from poolwatch.ledger import Ledger


def slot_for(record: ConnectionPoolEntry, ledger: Ledger) -> Slot:
    """Return *record*'s slot, a new one where it has none; raises TypeError for a record that can keep none."""
    info = record.record_info
    if info is None:
        msg = "a pool record without record_info"
        raise TypeError(msg)
    slot: Slot | None = info.get(ledger.key)
    if slot is None:
        slot = info[ledger.key] = Slot(record, privates.pool_of(record))
    return slot


def slot_of(connection: Connection, ledger: Ledger) -> Slot | None:
    """Return the slot of *connection*; ``None`` for one that is closed, invalidated or not known."""
    # An invalidated Connection would reconnect when asked for its connection.
    if connection.closed or connection.invalidated:
        return None
    info = connection.connection.record_info
    return None if info is None else info.get(ledger.key)


def settle(slot: Slot, ledger: Ledger) -> None:
    """Book a close whose reason was left open: the record is being connected again, so a checkout closed it."""
    retiring = slot.retiring
    if retiring is not None or slot.held is not None:
        # Without a close event: the thread that detaches it has returned the record, and is about to say so.
        ledger.lost(slot, "detached" if retiring is None else retiring.reason or "other", slot.serial)
