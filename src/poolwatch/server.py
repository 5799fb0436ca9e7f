"""What is known of database servers and drivers: which limits to ask for, and what a socket tells without a query."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import URL
    from sqlalchemy.engine import Dialect

# The session's value rules: it is copied from the global one, or from interactive_timeout, at login, and an
# application may have set it since. No table is read, so the statement opens no transaction.
# https://mariadb.com/kb/en/server-system-variables/#wait_timeout
_MYSQL_LIMITS = "SELECT @@session.wait_timeout, @@global.max_connections"

_PORTS = {"mysql": 3306, "mariadb": 3306, "postgresql": 5432}


class ServerLimits(NamedTuple):
    """What one session was told.

    Attributes:
        inactivity: Seconds of inactivity the session is allowed, by source; a source that is unknown is missing.
        max_connections: The server's; ``None`` if unknown.
    """

    inactivity: Mapping[str, float]
    max_connections: int | None


UNKNOWN = ServerLimits({}, None)


def driver_of(dialect: Dialect) -> str:
    """Return the driver's name; empty for a dialect that names none."""
    return getattr(dialect, "driver", "")


def ask_limits(dialect: Dialect, dbapi_connection: Any) -> ServerLimits:
    """Ask the server for this session's limits, in one round trip through the cursor.

    Raises what the driver raises. Answers :data:`UNKNOWN` without a query where nothing is known to ask for, and for
    an answer that makes no sense.
    """
    if dialect.name not in {"mysql", "mariadb"}:
        return UNKNOWN
    cursor = dbapi_connection.cursor()
    cursor.execute(_MYSQL_LIMITS)
    row = cursor.fetchone()
    cursor.close()
    try:
        wait_timeout, max_connections = (int(value) for value in row)
    except (TypeError, ValueError):
        return UNKNOWN
    if wait_timeout <= 0 or max_connections <= 0:
        return UNKNOWN
    return ServerLimits({"wait_timeout": float(wait_timeout)}, max_connections)


def ping_works(dialect: Dialect) -> bool:
    """Tell whether pre-ping notices a dead connection here; call it where the connection is used.

    aiomysql under uvloop does not: the ping on a reset connection raises a plain RuntimeError, which SQLAlchemy does
    not know as a lost connection.
    """
    if driver_of(dialect) != "aiomysql":
        return True
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return True
    return not type(loop).__module__.startswith("uvloop")


def is_dead(dialect: Dialect, driver_connection: Any) -> bool | None:
    """Tell whether the peer has closed this idle connection, without I/O; ``None`` if this driver cannot tell.

    MySQL 8 says goodbye (error 4031) before it closes, and a server says nothing else unasked, so that a buffer with
    something in it is the end too; ``_buffer`` is asyncio's private name for what nobody has read yet.
    """
    lost = is_lost(dialect, driver_connection)
    return bool(driver_connection._reader._buffer) if lost is False else lost  # noqa: SLF001


def is_lost(dialect: Dialect, driver_connection: Any) -> bool | None:
    """Tell whether this connection's transport has ended, without I/O; ``None`` if this driver cannot tell.

    The event loop has already read the end of the stream or met the reset; ``_reader`` and ``_writer`` are aiomysql's
    private names for the asyncio streams that know.
    """
    if driver_of(dialect) != "aiomysql" or driver_connection is None:
        return None
    reader, writer = getattr(driver_connection, "_reader", None), getattr(driver_connection, "_writer", None)
    if reader is None or writer is None:
        return None
    return bool(reader.at_eof() or reader.exception() is not None or writer.transport.is_closing())


def address(url: URL) -> str:
    """Return ``host:port``, or the socket's path, that *url* names; ``unknown`` where it names neither."""
    for option in ("unix_socket", "host"):
        value = url.query.get(option)
        if isinstance(value, str):
            return value
    if url.host is None:
        return "unknown"
    port = url.port or _PORTS.get(url.get_backend_name())
    return f"{url.host}:{port}" if port else url.host
