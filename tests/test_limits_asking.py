"""The question for limits is asked once, and leaves nothing behind on any driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from proxies import Eavesdropper
from support import until
from variants import VARIANTS, on_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from sqlalchemy import Connection

    from sessions import Client
    from variants import TlsServer, Variant

    MakeClient = Callable[..., Client]

pytest_plugins = ["sessions"]
pytestmark = pytest.mark.anyio

PLAIN = [each for each in VARIANTS if not each.tls]
MYSQL = [each for each in PLAIN if each.driver.mysql]
POSTGRESQL = [each for each in PLAIN if not each.driver.mysql]
AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT"}
either_way = pytest.mark.parametrize("options", [{}, AUTOCOMMIT], ids=["transactions", "autocommit"])


@either_way
@on_each(PLAIN)
async def test_asked_once(make_client: MakeClient, server: TlsServer, options: dict[str, Any]) -> None:
    """A connection is asked at its first checkout, and never again, not by reading either."""
    with Eavesdropper(server) as proxy:
        client = make_client(port=proxy.port, **options)
        async with client.connection():
            assert 1 == proxy.questions
        for _ in range(3):
            await client.use()
            assert client.limits
        assert 1 == proxy.questions
        async with client.connection(), client.connection():
            assert 2 == proxy.questions
        await client.check()
        await client.close()


@on_each(PLAIN)
async def test_asked_nothing(make_client: MakeClient, server: TlsServer) -> None:
    """With server_limits=False the server is never asked."""
    with Eavesdropper(server) as proxy:
        client = make_client(watching={"server_limits": False}, port=proxy.port)
        for _ in range(2):
            await client.use()
        assert 0 == proxy.questions
        assert ({}, None) == (client.limits, client.snapshot().server_max_connections)
        await client.check()
        await client.close()


@either_way
@on_each(PLAIN)
async def test_is_activity(make_client: MakeClient, options: dict[str, Any]) -> None:
    """The server has just heard from the connection."""
    client = make_client(**options)

    @event.listens_for(client.engine, "checkout", insert=True)
    def age(*_: Any) -> None:
        assert client.slot.active is not None
        client.slot.active -= 1000

    async with client.connection():
        assert client.slot.active == pytest.approx(client.watched._ledger.clock(), abs=100)


@on_each(MYSQL)
@either_way
async def test_no_transaction_on_mysql(make_client: MakeClient, server: TlsServer, options: dict[str, Any]) -> None:
    """The question opens none."""
    client = make_client(**options)
    async with client.connection() as connection:
        assert [] == server.query("SELECT 1 FROM information_schema.innodb_trx")
        assert 0 == await client.run(connection, "SELECT @@in_transaction")


@on_each(POSTGRESQL)
@either_way
async def test_no_transaction_on_postgresql(
    make_client: MakeClient, server: TlsServer, options: dict[str, Any]
) -> None:
    """The question opens none, and what it needs for that is as before afterwards."""
    client, plain = make_client(**options), make_client(watching=None, **options)
    async with client.connection() as one, plain.connection() as other:
        states = "SELECT state FROM pg_stat_activity WHERE usename = 'app'"
        await until(lambda: [("idle",), ("idle",)] == server.query(states), "two that are idle")
        assert client.limits
        for each in (one, other):
            assert bool(options) is await client.call(is_autocommit, each)
            await client.run(each, "SELECT 1")
        states += f" AND state != '{'idle' if options else 'idle in transaction'}'"
        await until(lambda: [] == server.query(states), "two that are alike")


def is_autocommit(connection: Connection) -> bool:
    """Tell whether *connection*'s driver begins no transactions."""
    dbapi: Any = connection.connection.dbapi_connection
    return bool(dbapi.autocommit)


@on_each(PLAIN)
@either_way
async def test_what_is_written(make_client: MakeClient, server: TlsServer, options: dict[str, Any]) -> None:
    """What the application writes next is undone with its transaction, or was none of one."""
    client = make_client(**options)
    plain = make_client(watching=None)
    await plain.use("SELECT 1")
    async with plain.connection() as connection:
        await plain.run(connection, "DROP TABLE IF EXISTS written")
        await plain.run(connection, "CREATE TABLE written (number INTEGER)")
        await plain.call(connection.commit)
    async with client.connection() as connection:
        await client.run(connection, "INSERT INTO written VALUES (1)")
        await client.call(connection.rollback)
        assert len(options) == await client.run(connection, "SELECT count(*) FROM written")
    assert len(server.connections()) == 2


@pytest.mark.parametrize("eager", [False, True])
@either_way
@on_each(POSTGRESQL)
async def test_nothing_prepared_on_postgresql(
    variant: Variant, make_client: MakeClient, options: dict[str, Any], *, eager: bool
) -> None:
    """As many statements are prepared as without the question, also where each is prepared at once."""
    args = {"prepare_threshold": 0} if eager and variant.driver.name == "psycopg" else {}
    counts = []
    for watched in (True, False):
        client = make_client(watching={} if watched else None, connect_args=args, **options)
        counts.append(await client.use("SELECT count(*) FROM pg_prepared_statements"))
        counts.append(await client.use("SELECT count(*) FROM pg_cursors WHERE name <> ''"))
    assert counts[:2] == counts[2:]


@either_way
@on_each(MYSQL)
async def test_nothing_prepared_on_mysql(make_client: MakeClient, server: TlsServer, options: dict[str, Any]) -> None:
    """Nothing is prepared at all."""
    before = server.query("SHOW GLOBAL STATUS LIKE 'Com_stmt_prepare'")
    client = make_client(**options)
    async with client.connection():
        assert [("Prepared_stmt_count", "0")] == server.query("SHOW GLOBAL STATUS LIKE 'Prepared_stmt_count'")
        assert before == server.query("SHOW GLOBAL STATUS LIKE 'Com_stmt_prepare'")
        assert client.limits


@on_each(POSTGRESQL)
async def test_asked_later(make_client: MakeClient, server: TlsServer) -> None:
    """A connection whose listener has left a transaction open is not touched, and asked at its next checkout."""
    with Eavesdropper(server) as proxy:
        client = make_client(port=proxy.port)

        @event.listens_for(client.engine, "connect")
        def leave_open(dbapi: Any, _record: Any) -> None:
            cursor = dbapi.cursor()
            cursor.execute("SET LOCAL idle_session_timeout = '77s'")
            cursor.close()

        async with client.connection() as connection:
            assert (0, {}) == (proxy.questions, client.limits)
            assert "77s" == await client.run(connection, "SHOW idle_session_timeout")
        for _ in range(2):
            await client.use()
            assert 1 == proxy.questions
            assert float("inf") == client.limits["idle_session_timeout"]
        await client.check()
        await client.close()


@on_each(POSTGRESQL)
async def test_never_asked_in_a_failed_transaction(make_client: MakeClient, server: TlsServer) -> None:
    """Nor where that transaction has failed, which another statement would only make fail again."""
    with Eavesdropper(server) as proxy:
        client = make_client(port=proxy.port)

        @event.listens_for(client.engine, "connect")
        def leave_failed(dbapi: Any, _record: Any) -> None:
            cursor = dbapi.cursor()
            with pytest.raises(Exception, match="nonsense"):
                cursor.execute("SELECT nonsense")

        async with client.connection() as connection:
            assert (0, {}) == (proxy.questions, client.limits)
            with pytest.raises(Exception, match="aborted"):
                await client.run(connection, "SELECT 1")
        await client.use()
        assert (1, 2) == (proxy.questions, len(client.limits))
        await client.check()
        await client.close()


@on_each(PLAIN)
async def test_opened_before(make_client: MakeClient, server: TlsServer, registry: CollectorRegistry) -> None:
    """A connection that was opened before anybody watched is asked when it is handed out next."""
    with Eavesdropper(server) as proxy:
        client = make_client(watching=None, port=proxy.port)
        await client.use()
        client.watch(registry=registry)
        assert (0, {}) == (proxy.questions, client.limits)
        for _ in range(2):
            await client.use()
            assert 1 == proxy.questions
            assert client.limits
        await client.check()
        await client.close()
