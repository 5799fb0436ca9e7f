"""What database servers allow a session: which limits to ask for, how, and what the answers mean."""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from poolwatch import drivers
from poolwatch.deadline import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import URL
    from sqlalchemy.engine import Dialect

# The session's values rule: they are copied at login, from the global ones or interactive_timeout, and an application
# may have set them since. No table is read, so the statement opens no transaction. Connection ids begin anew when the
# server starts.
# https://mariadb.com/kb/en/server-system-variables/#wait_timeout
# https://mariadb.com/kb/en/transaction-timeouts/
_MYSQL = "SELECT CONNECTION_ID(), @@global.max_connections, @@session.wait_timeout"
_MARIADB = (
    f"{_MYSQL}, @@session.idle_transaction_timeout, @@session.idle_readonly_transaction_timeout,"
    " @@session.idle_write_transaction_timeout"
)
# A setting that this version does not have is NULL. The start is negated: like a connection id, lower after a restart.
# https://www.postgresql.org/docs/current/runtime-config-client.html
_POSTGRESQL = (
    "SELECT -extract(epoch FROM pg_postmaster_start_time()), current_setting('max_connections'),"
    " extract(epoch FROM current_setting('idle_session_timeout', true)::interval),"
    " extract(epoch FROM current_setting('idle_in_transaction_session_timeout', true)::interval)"
)
_SOURCES = ("idle_session_timeout", "idle_in_transaction_session_timeout")

# https://dev.mysql.com/doc/mysql-errors/8.0/en/error-message-elements.html
_SERVER_ERRORS, _CLIENT_ERRORS = 1000, range(2000, 3000)

_MARGIN, _MARGIN_SHARE = 1.0, 0.02

_NOWHERE = "unknown"
_PORTS = {"mysql": 3306, "mariadb": 3306, "postgresql": 5432}


class ServerLimits(NamedTuple):
    """What one session was told.

    Attributes:
        inactivity: Seconds of inactivity the session is allowed, by source; ``inf`` for no limit, and a source that
            is unknown is missing.
        max_connections: The server's; ``None`` if unknown.
        mark: A number that is lower in sessions opened after a restart of the server; ``None`` if unknown.
    """

    inactivity: Mapping[str, float]
    max_connections: int | None
    mark: float | None


UNKNOWN = ServerLimits({}, None, None)


class HangsError(Exception):
    """The server did not answer in time; the connection cannot be used any more."""


class OutOfStepError(Exception):
    """More came than the answer; what is sent next on the connection would be answered with it."""


def deadline_for(dialect: Dialect, dbapi_connection: Any, seconds: float) -> Deadline | None:
    """Return what bounds the wait for an answer, from now on; ``None`` where nothing is asked or no wait is bounded."""
    if _family(dialect) not in _QUESTIONS:
        return None
    try:
        fileno = drivers.driver_of(dialect).fileno(dialect.get_driver_connection(dbapi_connection))
        return (
            None
            if fileno is None
            else Deadline(fileno, seconds, asyncio.get_running_loop() if dialect.is_async else None)
        )
    except (OSError, RuntimeError, TypeError):
        # No descriptor or no thread left; or what passes for a connection has no socket.
        return None


def ask_limits(dialect: Dialect, dbapi_connection: Any, deadline: Deadline) -> ServerLimits | None:
    """Ask the server for this session's limits, in one round trip that leaves no transaction and nothing prepared.

    Answers ``None`` without a query while a transaction is open that PostgreSQL would fail with the question, and
    :data:`UNKNOWN` for an answer that makes no sense.

    Raises:
        HangsError: No answer came before the *deadline*, and the connection was shut down.
        OutOfStepError: Something was left of the answer, or a transaction is said to be open.
        Exception: The driver's own.
    """
    question = _QUESTIONS[_family(dialect)]
    row = error = None
    try:
        with deadline:
            row = question(dialect, dbapi_connection)
    except Exception as error_:  # noqa: BLE001
        error = error_
    if deadline.passed:
        raise HangsError from error
    if error is not None:
        raise error
    if row is None:
        return None
    if _is_out_of_step(dialect, dialect.get_driver_connection(dbapi_connection)):
        raise OutOfStepError
    try:
        return _understood(dialect, row)
    except (TypeError, ValueError, ArithmeticError):
        return UNKNOWN


def was_refused(
    dialect: Dialect, dbapi_connection: Any, error: Exception, dbapi_errors: tuple[type[BaseException], ...]
) -> bool:
    """Tell whether the server answered a question with *error*, after which the connection works as before.

    *dbapi_errors*: the driver's own classes.
    """
    if drivers.driver_of(dialect).is_lost(dialect.get_driver_connection(dbapi_connection)):
        return False
    if is_disconnect(dialect, dbapi_connection, error, dbapi_errors):
        return False
    # What came may be left half read by a driver that can make no sense of it.
    return is_from_server(error)


def is_disconnect(
    dialect: Dialect, dbapi_connection: Any, error: Any, dbapi_errors: tuple[type[BaseException], ...]
) -> bool:
    """Tell whether SQLAlchemy takes *error* for a lost connection; *dbapi_errors*: the driver's own classes."""
    return isinstance(error, dbapi_errors) and dialect.is_disconnect(error, dbapi_connection, None)  # type: ignore[arg-type]


def is_from_server(error: BaseException) -> bool:
    """Tell whether *error*, a driver's, is one that the server sent: PostgreSQL's have a code, MySQL's a number."""
    if isinstance(getattr(error, "sqlstate", None), str):
        return True
    number = error.args[0] if error.args else None
    return isinstance(number, int) and number >= _SERVER_ERRORS and number not in _CLIENT_ERRORS


def limit_of(limits: Mapping[str, float], *, in_transaction: bool) -> float | None:
    """Return the seconds of inactivity after which a connection is dropped; ``inf`` for never, ``None`` if unknown.

    In a transaction MariaDB's limits for one replace ``wait_timeout`` where they are set, and PostgreSQL's replaces
    ``idle_session_timeout``, which then does not act.
    """
    acting = dict(limits)
    for inside, outside in (
        ("idle_transaction_timeout", "wait_timeout"),
        ("idle_in_transaction_session_timeout", "idle_session_timeout"),
    ):
        limit = acting.pop(inside, None)
        if in_transaction and limit is not None and (limit < inf or outside != "wait_timeout"):
            acting[outside] = limit
    return min(acting.values(), default=None)


def margin(limit: float) -> float:
    """Return the seconds by which a connection with this *limit* may be lost early: the server's clock is not ours."""
    return max(_MARGIN, _MARGIN_SHARE * limit)


def address(url: URL) -> str:
    """Return ``host:port``, or the socket's path, that *url* names; ``unknown`` where it names neither."""
    for option in ("unix_socket", "host"):
        value = url.query.get(option)
        if isinstance(value, str):
            return value
    if url.host is None:
        return _NOWHERE
    port = url.port or _PORTS.get(url.get_backend_name())
    return f"{url.host}:{port}" if port else url.host


def is_served(dialect: Dialect, url: URL) -> bool:
    """Tell whether there is a server: one that we ask, or an address; SQLite's databases are files."""
    return _family(dialect) in _QUESTIONS or address(url) != _NOWHERE


def _family(dialect: Dialect) -> str:
    if dialect.name in {"mysql", "mariadb"}:
        return "mysql"
    return f"{dialect.name}+{drivers.name_of(dialect)}" + ("+async" if dialect.is_async else "")


def _ask_mysql(dialect: Any, dbapi_connection: Any) -> Sequence[Any]:
    cursor = dbapi_connection.cursor()
    cursor.execute(_MARIADB if dialect.is_mariadb else _MYSQL)
    row: Sequence[Any] = cursor.fetchone()
    cursor.close()
    return row or ()


def _ask_asyncpg(_dialect: Dialect, dbapi_connection: Any) -> Sequence[Any] | None:
    # A query that returns rows would be prepared, and one through the cursor leave a transaction open.
    answer = bytearray()

    async def keep(data: bytes) -> None:
        answer.extend(data)

    if dbapi_connection.driver_connection.is_in_transaction():
        return None
    dbapi_connection.run_async(lambda connection: connection.copy_from_query(_POSTGRESQL, output=keep))
    return [None if value == "\\N" else value for value in answer.decode().rstrip("\n").split("\t")]


def _ask_psycopg(_dialect: Dialect, connection: Any) -> Sequence[Any] | None:
    if connection.info.transaction_status.name != "IDLE":
        return None
    was = connection.autocommit
    connection.autocommit = True
    try:
        row: Sequence[Any] = connection.execute(_POSTGRESQL, prepare=False).fetchone()
    finally:
        # Of a connection that was lost nothing can be set, nor need it be.
        if connection.info.transaction_status.name == "IDLE":
            connection.autocommit = was
    return row


def _ask_psycopg_async(_dialect: Dialect, dbapi_connection: Any) -> Sequence[Any] | None:
    async def ask(connection: Any) -> Sequence[Any]:
        was = connection.autocommit
        await connection.set_autocommit(True)
        try:
            cursor = await connection.execute(_POSTGRESQL, prepare=False)
            row: Sequence[Any] = await cursor.fetchone()
        finally:
            # As above; so it is after a cancellation.
            if connection.info.transaction_status.name == "IDLE":
                await connection.set_autocommit(was)
        return row

    if dbapi_connection.info.transaction_status.name != "IDLE":
        return None
    answer: Sequence[Any] = dbapi_connection.run_async(ask)
    return answer


_QUESTIONS: dict[str, Callable[[Any, Any], Sequence[Any] | None]] = {
    "mysql": _ask_mysql,
    "postgresql+asyncpg+async": _ask_asyncpg,
    "postgresql+psycopg": _ask_psycopg,
    "postgresql+psycopg+async": _ask_psycopg_async,
}


def _is_out_of_step(dialect: Dialect, connection: Any) -> bool:
    driver = drivers.driver_of(dialect)
    try:
        # On PostgreSQL nobody is asked in a transaction.
        is_open = dialect.name == "postgresql" and bool(driver.in_transaction(connection))
        return is_open or driver.goodbye(connection) is not None
    except Exception:  # noqa: BLE001
        # The driver has changed, which a reader will say; the answer is as good as any.
        return False


def _understood(dialect: Dialect, row: Sequence[Any]) -> ServerLimits:
    """Return what *row* says; raises TypeError, ValueError or ArithmeticError for nonsense."""
    mark, most, *seconds = (None if value is None else float(value) for value in row)
    if mark is None or most is None or not (abs(mark) < inf and 0 < most < inf):
        raise ValueError
    if any(value is not None and not 0 <= value < inf for value in seconds):
        raise ValueError
    if dialect.name == "postgresql":
        # 0 is off.
        limits = {source: value or inf for source, value in zip(_SOURCES, seconds, strict=True) if value is not None}
    else:
        idle, *in_transaction = (value or 0.0 for value in seconds)
        if not idle:
            raise ValueError
        limits = {"wait_timeout": idle}
        if in_transaction:
            limits["idle_transaction_timeout"] = min((value for value in in_transaction if value), default=inf)
    return ServerLimits(limits, int(most), mark)
