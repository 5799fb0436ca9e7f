"""The databases and drivers that situations are provoked on, and the truth that a driver's own objects tell."""

from __future__ import annotations

import gc
import os
import pwd
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pymysql  # type: ignore[import-untyped]

from poolwatch.demo.servers import MariaDB, NotInstalledError, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Database(Protocol):
    """What a test may ask of a database server, whichever it is.

    Attributes:
        own_id: The statement that asks for a connection's id.
        sleep: A statement that takes a minute.
        port: Where it listens.
    """

    own_id: str
    sleep: str
    port: int

    @property
    def pid(self) -> int | None:
        """Its main process."""

    def start(self) -> None:
        """Start it; return when it answers."""

    def stop(self) -> None:
        """Stop it in order, connections or not."""

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Run *statement* as superuser, on a connection of its own."""

    def url(self, driver: str) -> str:
        """Return SQLAlchemy's URL for the user ``app``."""

    def connections(self) -> list[int]:
        """Return the ids of the user ``app``'s connections, and of those that have not said who they are."""

    def kill(self, connection_id: int) -> None:
        """Kill a connection, unless it has gone by itself; return when the server has closed it."""

    def kill_statement(self, connection_id: int) -> None:
        """End the statement that a connection runs, not the connection."""

    def sleepers(self) -> list[int]:
        """Return the ids of connections that run ``sleep``."""

    def drop_inactive(self, seconds: int | None) -> None:
        """Let the server drop connections opened from now on after so long a silence; ``None``: as by default."""

    def lock_out(self, *, out: bool) -> None:
        """Refuse the user ``app``, or no longer."""


class TestedMariaDB(MariaDB):
    """The library's own throw-away MariaDB, with what tests ask of it besides."""

    own_id = "SELECT CONNECTION_ID()"
    sleep = "SELECT SLEEP(60)"

    def connections(self) -> list[int]:
        """Return the ids of the user ``app``'s connections, and of those that have not said who they are."""
        statement = "SELECT id FROM information_schema.processlist WHERE user IN ('app', 'unauthenticated user')"
        return [row[0] for row in self.query(statement)]

    def kill(self, connection_id: int) -> None:
        """Kill a connection, unless it has gone by itself; return when the server has closed it."""
        with suppress(pymysql.err.OperationalError):
            super().kill(connection_id)

    def kill_statement(self, connection_id: int) -> None:
        """End the statement that a connection runs, not the connection."""
        self.query(f"KILL QUERY {connection_id}")

    def sleepers(self) -> list[int]:
        """Return the ids of connections that run ``sleep``."""
        statement = "SELECT id FROM information_schema.processlist WHERE user = 'app' AND state = 'User sleep'"
        return [row[0] for row in self.query(statement)]

    def drop_inactive(self, seconds: int | None) -> None:
        """Set the ``wait_timeout`` that sessions opened from now on copy."""
        self.query(f"SET GLOBAL wait_timeout = {seconds or 'DEFAULT'}")

    def lock_out(self, *, out: bool) -> None:
        """Refuse the user ``app``, or no longer."""
        self.query(f"ALTER USER app@'127.0.0.1' ACCOUNT {'LOCK' if out else 'UNLOCK'}")


class PostgreSQL(Server):
    """A PostgreSQL with an empty database ``app`` and a user ``app`` with the password ``app``."""

    own_id = "SELECT pg_backend_pid()"
    sleep = "SELECT 1 FROM pg_sleep(60)"

    def __init__(self) -> None:
        # Debian keeps the server's programs out of the path, one directory a version.
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        if not found:
            msg = "postgres is not installed; on Debian: apt-get install postgresql"
            raise NotInstalledError(msg)
        self._programs = found[-1].parent
        super().__init__("postgresql")
        # It refuses to run as root.
        self.user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        shutil.chown(self.directory, self.user)

    def command(self) -> list[str]:
        """Make the cluster where it is missing; return the server's command line."""
        data = self.directory / "data"
        if not data.exists():
            arguments = [
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "--username=postgres",
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C",
            ]
            self._as_user([str(self._programs / "initdb"), f"--pgdata={data}", *arguments])
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.directory,
            "fsync": "off",
            "max_connections": 100,
        }
        settings = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
        return [*self._become(), str(self._programs / "postgres"), "-D", str(data), *settings]

    def _become(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        return ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]

    def _as_user(self, command: list[str]) -> None:
        subprocess.run([*self._become(), *command], check=True, stdout=subprocess.DEVNULL, cwd=self.directory)

    def ready(self) -> bool:
        """Tell whether it answers; the user and the database are there then."""
        try:
            if not self.query("SELECT 1 FROM pg_roles WHERE rolname = 'app'"):
                self.query("CREATE ROLE app LOGIN PASSWORD 'app'")
                self.query("CREATE DATABASE app OWNER app")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """Stop it without waiting for its clients, which SIGTERM would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
        super().stop()

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Run *statement* as superuser, on a connection of its own."""
        address = f"host={self.directory} port={self.port} user=postgres dbname=postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def url(self, driver: str = "asyncpg") -> str:
        """Return SQLAlchemy's URL for the user ``app``."""
        return f"postgresql+{driver}://app:app@127.0.0.1:{self.port}/app"

    def connections(self) -> list[int]:
        """Return the ids of the user ``app``'s connections, and of those that have not said who they are."""
        which = "usename = 'app' OR usename IS NULL AND backend_type = 'client backend'"
        return [row[0] for row in self.query(f"SELECT pid FROM pg_stat_activity WHERE {which}")]

    def kill(self, connection_id: int) -> None:
        """Kill a connection, unless it has gone by itself; return when the server has closed it."""
        self.query(f"SELECT pg_terminate_backend({connection_id})")
        while connection_id in self.connections():
            time.sleep(0.005)

    def kill_statement(self, connection_id: int) -> None:
        """End the statement that a connection runs, not the connection."""
        self.query(f"SELECT pg_cancel_backend({connection_id})")

    def sleepers(self) -> list[int]:
        """Return the ids of connections that run ``sleep``."""
        statement = "SELECT pid FROM pg_stat_activity WHERE usename = 'app' AND wait_event = 'PgSleep'"
        return [row[0] for row in self.query(statement)]

    def drop_inactive(self, seconds: int | None) -> None:
        """Set both of its limits, in and out of a transaction, for sessions opened from now on."""
        for limit in ("idle_session_timeout", "idle_in_transaction_session_timeout"):
            self.query(f"ALTER ROLE app SET {limit} = '{seconds}s'" if seconds else f"ALTER ROLE app RESET {limit}")

    def lock_out(self, *, out: bool) -> None:
        """Refuse the user ``app``, or no longer."""
        self.query(f"ALTER ROLE app {'NOLOGIN' if out else 'LOGIN'}")


@dataclass(frozen=True)
class Driver:
    """A driver on an event loop.

    Attributes:
        name: SQLAlchemy's name for it.
        database: The fixture that serves its database.
        uvloop: Run it on uvloop.
        strands: A connection that is collected without a close leaves its socket open, held by the event loop.
    """

    name: str
    database: str
    uvloop: bool = False
    strands: bool = False

    def __str__(self) -> str:
        return f"{self.name}-{'uvloop' if self.uvloop else 'asyncio'}"

    @property
    def names(self) -> set[str]:
        """What marks may call it."""
        return {self.name, str(self)}

    @property
    def mysql(self) -> bool:
        """It speaks to MariaDB."""
        return self.database == "mariadb"


DRIVERS = [
    Driver(name, uvloop=uvloop, **traits)
    for name, traits in (
        ("aiomysql", {"database": "mariadb"}),
        ("asyncmy", {"database": "mariadb", "strands": True}),
        ("asyncpg", {"database": "postgresql"}),
        ("psycopg", {"database": "postgresql"}),
    )
    for uvloop in (False, True)
]

# The driver's class by module and name, and whether one of its objects is open by its own account. aiomysql does not
# notice that uvloop has closed its transport.
_HANDLES: dict[tuple[str, str], Callable[[Any], bool]] = {
    ("aiomysql.connection", "Connection"): lambda handle: (
        not handle.closed and not handle._writer.transport.is_closing()
    ),
    ("pymysql.connections", "Connection"): lambda handle: handle.open,
    ("asyncmy.connection", "Connection"): lambda handle: handle.connected,
    ("asyncpg.connection", "Connection"): lambda handle: not handle.is_closed(),
    ("psycopg", "AsyncConnection"): lambda handle: not handle.closed,
}


def open_handles() -> int:
    """Return how many connections the drivers hold open, of those that the garbage collector looks after."""
    found = 0
    for each in gc.get_objects():
        kind = type(each)
        is_open = _HANDLES.get((kind.__module__, kind.__name__))
        found += is_open is not None and is_open(each)
    return found


@contextmanager
def frozen(server: Database) -> Iterator[None]:
    """Stop every thread and process of *server*, so that it takes connections and bytes and answers nothing."""
    assert server.pid is not None
    _stop(server.pid)
    # It makes no others now.
    pids = [server.pid, *map(int, Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split())]
    for pid in pids[1:]:
        _stop(pid)
    try:
        yield
    finally:
        # The first process last: it takes note of those that have ended, and their numbers are gone.
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while not _is_stopped(pid):
        time.sleep(0.001)


def _is_stopped(pid: int) -> bool:
    states = set()
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        # A thread that has ended meanwhile stands still too.
        with suppress(FileNotFoundError, ProcessLookupError):
            states.add(path.read_text().rpartition(") ")[2][0])
    # Z: the process has ended, and its parent, which is stopped, has not taken note.
    return states <= {"T", "Z"}
