"""Behind PgBouncer in transaction mode checkouts work, and the limits found are those of the server behind it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from poolers import PgBouncer
from proxies import Eavesdropper
from support import assert_books, moved, until
from variants import VARIANTS, on_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sessions import Client
    from tls import TlsPostgreSQL
    from variants import Variant

    MakeClient = Callable[..., Client]

pytest_plugins = ["sessions"]
pytestmark = [pytest.mark.anyio, pytest.mark.once]

POSTGRESQL = [each for each in VARIANTS if not each.driver.mysql and not each.tls]
CLIENTS, SESSIONS = 5, 2
LIMITS = {"idle_session_timeout": 77.0, "idle_in_transaction_session_timeout": 66.0}
STATES = "SELECT state FROM pg_stat_activity WHERE usename = 'app'"


@pytest.fixture
def bouncer(server: TlsPostgreSQL) -> Iterator[PgBouncer]:
    """Start a PgBouncer before a server that has limits; a machine without one fails."""
    for name, seconds in LIMITS.items():
        server.query(f"ALTER ROLE app SET {name} = '{seconds}s'")
    try:
        with PgBouncer(server, sessions=SESSIONS) as started:
            yield started
    finally:
        server.query("ALTER ROLE app RESET ALL")


def options(variant: Variant, port: int) -> dict[str, Any]:
    """Return what SQLAlchemy says that *variant*'s driver needs there: statements that are prepared stay elsewhere."""
    args = {
        "asyncpg": {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"__asyncpg_{uuid4()}__",
        },
        "psycopg": {"prepare_threshold": None},
    }
    return {"port": port, "connect_args": args[variant.driver.name], "pool_size": CLIENTS}


@pytest.mark.parametrize("more", [{}, {"isolation_level": "AUTOCOMMIT"}], ids=["transactions", "autocommit"])
@on_each(POSTGRESQL)
async def test_one(variant: Variant, make_client: MakeClient, bouncer: PgBouncer, more: dict[str, Any]) -> None:
    """A checkout is asked, and works."""
    client = make_client(**options(variant, bouncer.port), **more)
    async with client.connection() as connection:
        assert LIMITS == client.limits
        assert 1 == await client.run(connection, "SELECT 1")
    assert 2 == await client.use("SELECT 2")
    snapshot = client.snapshot()
    assert_books(snapshot)
    assert (1, 100) == (snapshot.connects_total, snapshot.server_max_connections)


@on_each(POSTGRESQL)
async def test_many(variant: Variant, make_client: MakeClient, bouncer: PgBouncer, server: TlsPostgreSQL) -> None:
    """More clients than the server has sessions for are held at once: none keeps one, by a transaction left open."""
    client = make_client(**options(variant, bouncer.port))
    held = await asyncio.gather(*(client.connect() for _ in range(CLIENTS)))
    assert [LIMITS] * CLIENTS == [slot.limits for slot in client.watched._ledger.slots.values()]
    await until(lambda: {("idle",)} == set(server.query(STATES)), "no session in a transaction")
    assert len(server.query(STATES)) <= SESSIONS

    async def work(number: int) -> int:
        connection = held[number]
        found = [await client.run(connection, f"SELECT {number}")]
        await client.call(connection.commit)
        found.append(await client.run(connection, f"SELECT {number} FROM pg_sleep(0.01)"))
        await client.call(connection.close)
        return sum(found)

    assert [2 * number for number in range(CLIENTS)] == await asyncio.gather(*map(work, range(CLIENTS)))
    assert_books(client.snapshot())
    assert {"idle": CLIENTS} == moved(client.snapshot().connections)


@on_each(POSTGRESQL)
async def test_not_asked(variant: Variant, make_client: MakeClient, bouncer: PgBouncer) -> None:
    """With server_limits=False nothing is asked, and nothing is known but what the operator says."""
    with Eavesdropper(bouncer) as proxy:
        for watching, limits in (({}, {}), ({"inactivity_limit": 50}, {"configured": 50})):
            client = make_client(watching={"server_limits": False, **watching}, **options(variant, proxy.port))
            assert 1 == await client.use()
            assert (0, limits) == (proxy.questions, client.limits)
            await client.close()
        client = make_client(**options(variant, proxy.port))
        await client.use()
        assert (1, LIMITS) == (proxy.questions, client.limits)
        await client.close()
