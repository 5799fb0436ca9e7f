"""Why a connection was closed, as far as the event at hand can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import exc
from sqlalchemy.pool import NullPool, Pool

from poolwatch import privates
from poolwatch.hotpath import MEANT

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry


def of_invalidation(
    error: BaseException | None,
    dbapi_errors: tuple[type[BaseException], ...],
    *,
    set_up: bool,
    held: bool,
) -> str:
    """Return the reason that an ``invalidate`` event with *error* gives to the ``close`` that follows.

    Args:
        error: The event's; ``None`` for a call without one, and when SQLAlchemy gives up after two attempts.
        dbapi_errors: The driver's own classes.
        set_up: The connection was set up, and checkouts may have it.
        held: A caller had got the connection.
    """
    if error is None:
        return "invalidated"
    if not isinstance(error, Exception):
        return "cancelled"
    if not set_up:
        return "failed"
    if held and _caught_by_pool(error):
        return "reset_failed"
    if isinstance(error, exc.DisconnectionError) and not hasattr(error, MEANT):
        # Raised by the pool itself after a failed ping, and by a listener in a deeper frame.
        raised_by_pool = error.__traceback__ is not None and error.__traceback__.tb_next is None
        return "pre_ping" if raised_by_pool and error.invalidate_pool else "invalidated"
    return "disconnect" if hasattr(error, MEANT) or isinstance(error, dbapi_errors) else "invalidated"


def _caught_by_pool(error: Exception) -> bool:
    # Errors of statements are caught in the engine, those of a return in the pool; no event tells them apart.
    caught = error.__traceback__
    return caught is not None and caught.tb_frame.f_globals.get("__name__") == Pool.__module__


def of_close(record: ConnectionPoolEntry) -> str | None:
    """Return the reason of a ``close`` event that no ``invalidate`` announced; ``None`` if a later event decides."""
    pool = privates.pool_of(record)
    if isinstance(pool, NullPool):
        return "unpooled"
    # Where other threads return connections, a full pool does not tell a return from a replacement.
    return "overflow" if is_full(pool) and privates.retirement(record) is None else None


def is_full(pool: Pool | Any) -> bool:
    """Tell whether a return would find no place; who takes one out, to replace or dispose of it, leaves one free."""
    checkedin, size = getattr(pool, "checkedin", None), getattr(pool, "size", None)
    return callable(checkedin) and callable(size) and 0 < size() <= checkedin()
