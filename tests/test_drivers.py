"""What is known of drivers still holds: each adapter's private names exist and mean what they meant."""

from __future__ import annotations

import errno
import os
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from poolwatch import drivers
from proxies import Proxy
from support import until
from variants import VARIANTS, on_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import PoolProxiedConnection

    from variants import TlsServer, Variant, WatchedPool

pytest_plugins = ["tls"]

PLAIN = [each for each in VARIANTS if not each.tls]
MYSQL = [each for each in PLAIN if each.driver.mysql]

# MySQL's packet of error 4031, the first of its exchange.
_MESSAGE = b"\xff\xbf\x0f#HY000The client was disconnected by the server because of inactivity."
GOODBYE = len(_MESSAGE).to_bytes(3, "little") + b"\0" + _MESSAGE

# Only these say how a connection was lost.
TELL_RESETS = {"aiomysql", "asyncmy"}
# These take the server's word from what a write or a commit is answered with, but not from a read's rows.
DEAF_TO_READS = {"aiomysql", "pymysql"}


class MutteringProxy(Proxy):
    """Says something that nobody asked for, without an end behind it."""

    def mutter(self, words: bytes) -> None:
        """Send *words* on every connection."""

        def act() -> None:
            for each in self._pairs:
                each.client.write(words)

        self._do(act)


def run(connection: PoolProxiedConnection, statement: str) -> Any:
    """Run *statement*; return its first row."""
    cursor = connection.cursor()
    cursor.execute(statement)
    row = cursor.fetchone() if cursor.description else None
    cursor.close()
    return row


@pytest.mark.anyio
@on_each(VARIANTS)
async def test_tls(variant: Variant, make_pool: Callable[..., WatchedPool], server: TlsServer) -> None:
    """These tests use TLS where they say so, and none where they say plain."""
    pool = make_pool()
    connection = await pool.call(pool.engine.raw_connection)
    row = await pool.call(run, connection, server.cipher)
    assert variant.tls == bool(row[-1])
    await pool.call(connection.close)


@pytest.mark.anyio
@on_each(VARIANTS)
async def test_alive(make_pool: Callable[..., WatchedPool], server: TlsServer) -> None:
    """A living connection's socket is where we look, and nothing there is wrong."""
    pool = make_pool()
    fairy = await pool.call(pool.engine.raw_connection)
    adapter, connection = pool.adapter, fairy.driver_connection
    assert False is adapter.is_lost(connection)
    assert False is adapter.is_dead(connection)
    assert None is adapter.goodbye(connection)
    assert None is adapter.was_reset(connection)
    fileno = adapter.fileno(connection)
    assert isinstance(fileno, int)
    with socket.socket(fileno=os.dup(fileno)) as own:
        assert ("127.0.0.1", server.port) == own.getpeername()
    await pool.call(fairy.close)


@pytest.mark.anyio
@on_each(VARIANTS)
async def test_closed(make_pool: Callable[..., WatchedPool]) -> None:
    """A connection that we have closed ourselves is lost, and has no socket."""
    pool = make_pool()
    fairy = await pool.call(pool.engine.raw_connection)
    adapter, connection = pool.adapter, fairy.driver_connection
    await pool.call(fairy.invalidate)
    await until(lambda: adapter.fileno(connection) in {None, -1}, "the end of the socket")
    assert True is adapter.is_lost(connection)
    assert True is adapter.is_dead(connection)
    assert None is adapter.goodbye(connection)
    assert adapter.in_transaction(connection) in {None, False}


@pytest.mark.anyio
@pytest.mark.parametrize("end", [Proxy.finish, Proxy.reset])
@on_each(VARIANTS)
async def test_lost(
    variant: Variant, make_pool: Callable[..., WatchedPool], server: TlsServer, end: Callable[[Proxy], None]
) -> None:
    """A lost connection is known for it, and how it was lost where the event loop has told the driver."""
    with Proxy(server) as proxy:
        pool = make_pool(proxy.port)
        fairy = await pool.call(pool.engine.raw_connection)
        adapter, connection = pool.adapter, fairy.driver_connection
        end(proxy)
        await until(lambda: adapter.is_lost(connection) is True, "the loss")
        assert True is adapter.is_dead(connection)
        assert None is adapter.goodbye(connection)
        reset = end is Proxy.reset if variant.driver.name in TELL_RESETS else None
        await until(lambda: adapter.was_reset(connection) is reset, "how it was lost")
        await pool.call(fairy.invalidate)


@pytest.mark.anyio
@on_each(each for each in VARIANTS if each.sync)
async def test_looking_leaves_the_reset(make_pool: Callable[..., WatchedPool], server: TlsServer) -> None:
    """The mark of a reset, which the first to use a socket takes away, is left to the driver."""
    with Proxy(server) as proxy:
        pool = make_pool(proxy.port)
        fairy = await pool.call(pool.engine.raw_connection)
        adapter, connection = pool.adapter, fairy.driver_connection
        proxy.reset()
        await until(lambda: adapter.is_dead(connection) is True, "the loss")
        adapter.goodbye(connection)
        with socket.socket(fileno=os.dup(adapter.fileno(connection) or -1)) as own:
            assert errno.ECONNRESET == own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        await pool.call(fairy.invalidate)


@pytest.mark.anyio
@on_each(PLAIN)
async def test_in_transaction(variant: Variant, make_pool: Callable[..., WatchedPool]) -> None:
    """The server's last word on transactions is found, and where it may be out of date nothing is claimed."""
    pool = make_pool()
    await pool.fill("CREATE TABLE IF NOT EXISTS kept (number INTEGER)", "SELECT 1")
    deaf = variant.driver.name in DEAF_TO_READS
    none, read = (None, None) if deaf else (False, True)
    assert [none, read, none] == await pool.call(_told, pool, "SELECT number FROM kept")
    assert [none, True, none] == await pool.call(_told, pool, "INSERT INTO kept VALUES (1)")
    autocommit = {"isolation_level": "AUTOCOMMIT"}
    assert [False, False, none] == await pool.call(_told, pool, "SELECT number FROM kept", autocommit)
    assert [False, False, none] == await pool.call(_told, pool, "INSERT INTO kept VALUES (1)", autocommit)
    if variant.driver.mysql:
        # A statement ends it.
        assert [none, none, none] == await pool.call(_told, pool, "INSERT INTO kept VALUES (1)", {}, "COMMIT")
    # Rows that are fetched one after the other, and all of them at last.
    streaming = {"stream_results": True}
    assert [none, read, none] == await pool.call(_told, pool, "SELECT number FROM kept", streaming)


def _told(pool: WatchedPool, statement: str, options: dict[str, Any] | None = None, *then: str) -> list[bool | None]:
    """Return what is told before and after statements, and in the pool again."""
    with pool.engine.connect().execution_options(**(options or {})) as connection:
        driver = connection.connection.driver_connection
        told = [pool.adapter.in_transaction(driver)]
        for each in (statement, *then):
            result = connection.exec_driver_sql(each)
            if result.returns_rows:
                result.all()
        told.append(pool.adapter.in_transaction(driver))
    return [*told, pool.adapter.in_transaction(driver)]


@pytest.mark.parametrize(
    ("own", "agreed", "reading", "told"),
    [(0, True, False, False), (0, False, False, None), (0, True, True, None), (2, False, True, False)],
)
def test_a_status_that_was_not_sent(*, own: int, agreed: bool, reading: bool, told: bool | None) -> None:
    """Of an asyncmy result the status 0 says nothing where rows come without one, or are not all read."""
    adapter = drivers.driver_of(create_async_engine("mysql+asyncmy://127.0.0.1:1/app").dialect)
    result = SimpleNamespace(server_status=0, unbuffered_active=reading)
    connection = SimpleNamespace(server_status=own, _result=result, _deprecate_eof=agreed)
    assert told is adapter.in_transaction(connection)


@pytest.mark.anyio
@on_each(PLAIN)
async def test_always_sends(make_pool: Callable[..., WatchedPool], server: TlsServer) -> None:
    """Whether the server hears of a rollback and a commit outside a transaction is known."""
    pool = make_pool()
    fairy = await pool.call(pool.engine.raw_connection)
    await pool.call(fairy.rollback)
    for end in (fairy.rollback, fairy.commit):
        before = server.heard()
        await pool.call(end)
        assert pool.adapter.always_sends == (before != server.heard())
    await pool.call(fairy.close)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("words", "number"),
    [(GOODBYE, 4031), (GOODBYE[:7], 4031), (GOODBYE[:6], 0), (b"\1\0\0\0\0", 0)],
    ids=["goodbye", "its number", "half its number", "something else"],
)
@on_each(MYSQL)
async def test_goodbye_of_mysql_8(
    make_pool: Callable[..., WatchedPool], server: TlsServer, words: bytes, number: int
) -> None:
    """An error that nobody asked for is the server's last word, be the end of the stream behind it or not.

    MySQL 8, which says so before it closes a connection for its inactivity, cannot be had here: a proxy stands in.
    """
    with MutteringProxy(server) as proxy:
        pool = make_pool(proxy.port)
        fairy = await pool.call(pool.engine.raw_connection)
        adapter, connection = pool.adapter, fairy.driver_connection
        await pool.call(fairy.close)
        assert {"idle": 1} == pool.states()
        proxy.mutter(words)
        await until(lambda: number == adapter.goodbye(connection), "the goodbye")
        assert False is adapter.is_lost(connection)
        # What is no error may be the rest of an answer that nobody wanted.
        assert {"dead" if number else "idle": 1} == pool.states()
        proxy.say(b"")
        await until(lambda: adapter.is_lost(connection) is True, "the end behind it")
        assert number == adapter.goodbye(connection)
        assert {"dead": 1} == pool.states()


def test_unknown_drivers_cannot_tell() -> None:
    """Unknown is neither alive nor dead; the socket is found where it is offered."""
    for dialect in (create_engine("sqlite://").dialect, SimpleNamespace()):
        adapter = drivers.driver_of(dialect)  # type: ignore[arg-type]
        for ask in (adapter.is_dead, adapter.is_lost, adapter.goodbye, adapter.was_reset, adapter.in_transaction):
            assert None is ask(object())
        assert None is adapter.fileno(object())
        assert 3 == adapter.fileno(SimpleNamespace(fileno=lambda: 3))


@pytest.mark.parametrize("name", ["mysql+mysqldb", "mysql+mariadbconnector", "postgresql+psycopg2", "sqlite"])
def test_what_other_drivers_see(name: str) -> None:
    """Of drivers without an adapter nothing is known, and nobody is told that their dead connections are seen."""
    assert not drivers.driver_of(make_url(f"{name}://").get_dialect()()).sees_death
