"""What a driver's connection tells without a query: an adapter for each driver, and all of their private names we use.

Nothing here reads what belongs to the driver, but for the last word on a lost connection: the event loop or the kernel
has noted the end of a connection already, and we look. Each private name was read in the source of the versions named
at its adapter; a test fails when one of them goes away.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from poolwatch import sockets

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

# MySQL's protocol: flags of the last status that the server sent.
_IN_TRANSACTION, _AUTOCOMMIT = 1, 2
# A header of four bytes, of which the last counts packets; then an error packet's first byte, and its number.
_ERROR_AT, _ERROR = 4, 0xFF
# libpq's name for the field of a notice that holds its SQLSTATE: PG_DIAG_SQLSTATE.
_SQLSTATE = ord("C")


class Driver:
    """A driver we know nothing of: it cannot tell.

    Attributes:
        sees_death: It can tell that a connection has ended while nobody uses it.
        always_sends: COMMIT and ROLLBACK are sent outside a transaction too; false if that is not known.
        says_why: The server has a last word for every connection it closes, and the driver's error passes it on.
    """

    sees_death = False
    always_sends = False
    says_why = False

    def is_lost(self, _connection: Any) -> bool | None:
        """Tell whether the transport has ended; ``None`` if the driver cannot tell."""
        return None

    def is_dead(self, connection: Any) -> bool | None:
        """Tell whether the peer has ended this idle connection, or said goodbye; ``None`` if it cannot be told."""
        lost = self.is_lost(connection)
        # An answer that nobody has read to its end is no error.
        return bool(self.goodbye(connection)) if lost is False else lost

    def goodbye(self, _connection: Any) -> int | None:
        """Return what lies unread on an idle connection: an error's number, 0 for anything else, ``None`` for nothing.

        A MySQL server says nothing unasked but its last word: 8.0.24 and later send error 4031 before they close.
        """
        return None

    def last_word(self, connection: Any) -> object:
        """Return the number or SQLSTATE of what the server said before it closed a connection, ``None`` for nothing.

        It may be read from the connection, which nobody is to use after that.
        """
        return self.goodbye(connection)

    def was_reset(self, _connection: Any) -> bool | None:
        """Tell whether a lost connection was reset (true) or closed in order; ``None`` if the driver does not know."""
        return None

    def in_transaction(self, _connection: Any) -> bool | None:
        """Tell whether a transaction is open, by what the server said last; ``None`` if it cannot be told."""
        return None

    def hang_up(self, _connection: Any) -> None:
        """Close a connection at once, in as far as the driver's own close would wait for the peer, or fail.

        That close may follow, and finds nothing left to do.
        """

    def fileno(self, connection: Any) -> int | None:
        """Return the socket's file descriptor; ``None`` if the driver does not say."""
        fileno = getattr(connection, "fileno", None)
        return fileno() if callable(fileno) else None


class _OtherMySQL(Driver):
    always_sends = True


class _MySQL(_OtherMySQL):
    def in_transaction(self, connection: Any) -> bool | None:
        # The rows of a SELECT come without a status; what the session is set to, they do not change.
        status = connection.server_status
        return True if status & _IN_TRANSACTION else False if status & _AUTOCOMMIT else None


class _Aiomysql(_MySQL):
    """aiomysql 0.2.0 to 0.3.2: two asyncio streams; ``_buffer`` is asyncio's name for what nobody has read."""

    sees_death = True

    def is_lost(self, connection: Any) -> bool | None:
        reader, writer = connection._reader, connection._writer  # noqa: SLF001
        if reader is None or writer is None:
            return True
        return reader.at_eof() or reader.exception() is not None or _ended(writer.transport)

    def goodbye(self, connection: Any) -> int | None:
        reader = connection._reader  # noqa: SLF001
        return None if reader is None else _error_number(reader._buffer)  # noqa: SLF001

    def was_reset(self, connection: Any) -> bool | None:
        reader = connection._reader  # noqa: SLF001
        if reader is None:
            return None
        return True if reader.exception() is not None else False if reader.at_eof() else None

    def hang_up(self, connection: Any) -> None:
        # COM_QUIT, so that the server does not count an aborted client; the first step is all there is to it.
        goodbye = connection.ensure_closed()
        try:
            goodbye.send(None)
        except Exception:  # noqa: BLE001, S110
            # Done; or the transport is gone, of which uvloop says so by a RuntimeError.
            pass
        finally:
            goodbye.close()
            with suppress(RuntimeError):
                # Of an event loop that was closed before.
                connection.close()

    def fileno(self, connection: Any) -> int | None:
        writer = connection._writer  # noqa: SLF001
        return None if writer is None else _fileno(writer.transport)


class _Asyncmy(_Aiomysql):
    """asyncmy 0.2.13 to 0.2.18: a transport and a protocol of its own; until 0.2.12, aiomysql's two streams."""

    def is_lost(self, connection: Any) -> bool | None:
        if not hasattr(connection, "_proto"):
            return super().is_lost(connection)
        transport, protocol = connection._transport, connection._proto  # noqa: SLF001
        return transport is None or protocol.eof or protocol.exc is not None or _ended(transport)

    def goodbye(self, connection: Any) -> int | None:
        if not hasattr(connection, "_proto"):
            return super().goodbye(connection)
        protocol = connection._proto  # noqa: SLF001
        return _error_number(protocol.buffer[protocol.pos : protocol.length])

    def was_reset(self, connection: Any) -> bool | None:
        if not hasattr(connection, "_proto"):
            return super().was_reset(connection)
        protocol = connection._proto  # noqa: SLF001
        return True if protocol.exc is not None else False if protocol.eof else None

    def in_transaction(self, connection: Any) -> bool | None:
        # After a statement its result has the server's word, of which the connection leaves out a 0.
        result = connection._result  # noqa: SLF001
        status = connection.server_status if result is None else result.server_status
        if status & _IN_TRANSACTION:
            return True
        # Of rows the status comes at their end, and only where both sides have agreed to that.
        told = result is None or (not result.unbuffered_active and getattr(connection, "_deprecate_eof", False))
        return False if told or connection.server_status & _AUTOCOMMIT else None

    def fileno(self, connection: Any) -> int | None:
        if not hasattr(connection, "_proto"):
            return super().fileno(connection)
        transport = connection._transport  # noqa: SLF001
        return None if transport is None else _fileno(transport)


class _PyMySQL(_MySQL):
    """PyMySQL 1.1.1 to 1.2.4: a socket that nobody reads while the connection is idle."""

    sees_death = sockets.TELLS

    def is_lost(self, connection: Any) -> bool | None:
        own = connection._sock  # noqa: SLF001
        return True if own is None else sockets.has_ended(own.fileno())

    def goodbye(self, connection: Any) -> int | None:
        own = connection._sock  # noqa: SLF001
        # Under TLS what lies there is no packet.
        unread = None if own is None or isinstance(own, ssl.SSLSocket) else sockets.peek(own.fileno())
        return None if unread is None else _error_number(unread)

    def fileno(self, connection: Any) -> int | None:
        own = connection._sock  # noqa: SLF001
        return None if own is None else int(own.fileno())


class _Asyncpg(Driver):
    """asyncpg 0.29 to 0.32: it closes itself when the transport ends, and drops the server's last word."""

    sees_death = True

    def is_lost(self, connection: Any) -> bool | None:
        return connection.is_closed() or _ended(connection._transport)  # noqa: SLF001

    def in_transaction(self, connection: Any) -> bool | None:
        # An aborted connection has none.
        return None if connection._protocol is None else bool(connection.is_in_transaction())  # noqa: SLF001

    def hang_up(self, connection: Any) -> None:
        # Its close waits for the server to close first. The event loop may have been closed before.
        with suppress(RuntimeError):
            connection.terminate()

    def fileno(self, connection: Any) -> int | None:
        return _fileno(connection._transport)  # noqa: SLF001


class _Psycopg(Driver):
    """psycopg 3: a socket of libpq's, read during a statement alone; everything here is public."""

    sees_death = sockets.TELLS
    says_why = True

    def is_lost(self, connection: Any) -> bool | None:
        return True if connection.closed else sockets.has_ended(self._number(connection))

    def last_word(self, connection: Any) -> object:
        heard: list[bytes | None] = []
        connection.pgconn.notice_handler = lambda notice: heard.append(notice.error_field(_SQLSTATE))
        with suppress(Exception):
            connection.pgconn.consume_input()
            # Parses what came.
            connection.pgconn.is_busy()
        return heard[-1].decode() if heard and heard[-1] else None

    def in_transaction(self, connection: Any) -> bool | None:
        status = connection.info.transaction_status
        # After the connection was lost libpq has forgotten.
        return None if status.name == "UNKNOWN" else bool(status.name != "IDLE")

    def fileno(self, connection: Any) -> int | None:
        return None if connection.closed else self._number(connection)

    @staticmethod
    def _number(connection: Any) -> int:
        try:
            return int(connection.fileno())
        except Exception:
            # Another thread has closed it meanwhile.
            if connection.closed:
                return -1
            raise


_DRIVERS: dict[str, Driver] = {
    "aiomysql": _Aiomysql(),
    "asyncmy": _Asyncmy(),
    "pymysql": _PyMySQL(),
    "asyncpg": _Asyncpg(),
    "psycopg": _Psycopg(),
}
_UNKNOWN, _UNKNOWN_MYSQL = Driver(), _OtherMySQL()


def name_of(dialect: Dialect) -> str:
    """Return the driver's name; empty for a dialect that names none."""
    return getattr(dialect, "driver", "")


def driver_of(dialect: Dialect) -> Driver:
    """Return the adapter of *dialect*'s driver; for one we do not know, one that cannot tell."""
    other = _UNKNOWN_MYSQL if getattr(dialect, "name", "") in {"mysql", "mariadb"} else _UNKNOWN
    return _DRIVERS.get(name_of(dialect), other)


def ping_works(dialect: Dialect) -> bool:
    """Tell whether pre-ping notices a dead connection here; call it where the connection is used.

    aiomysql under uvloop does not: the ping on a reset connection raises a plain RuntimeError, which SQLAlchemy does
    not know as a lost connection.
    """
    if name_of(dialect) != "aiomysql":
        return True
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return True
    return not type(loop).__module__.startswith("uvloop")


def _ended(transport: Any) -> bool:
    # The event loop may not have come round yet to what the kernel knows.
    return transport.is_closing() or bool(sockets.has_ended(_fileno(transport)))


def _fileno(transport: Any) -> int:
    own = transport.get_extra_info("socket")
    return -1 if own is None else own.fileno()


def _error_number(unread: bytes) -> int | None:
    if not unread:
        return None
    if len(unread) > _ERROR_AT + 2 and unread[_ERROR_AT] == _ERROR:
        return int.from_bytes(unread[_ERROR_AT + 1 : _ERROR_AT + 3], "little")
    return 0
