"""Each session's own limits as MariaDB has them, from every source, and what they mean for deadlines."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from poolwatch import server as poolwatch_server
from support import moved
from variants import VARIANTS, on_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sessions import Client
    from variants import TlsServer

    MakeClient = Callable[..., Client]
    SetGlobal = Callable[..., None]

pytest_plugins = ["sessions"]
pytestmark = pytest.mark.anyio

MYSQL = [each for each in VARIANTS if each.driver.mysql and not each.tls]
# CLIENT_INTERACTIVE of MySQL's protocol.
INTERACTIVE = 1 << 10
DEFAULT = {"wait_timeout": 28800.0, "idle_transaction_timeout": inf}


@pytest.fixture
def set_global(server: TlsServer) -> Iterator[SetGlobal]:
    """Return a function that sets global variables; they are set back afterwards."""
    before: dict[str, Any] = {}

    def assign(name: str, value: object) -> None:
        ((before[name],),) = server.query(f"SELECT @@global.{name}")
        server.query(f"SET GLOBAL {name} = {value!r}")

    yield assign
    for name, value in before.items():
        server.query(f"SET GLOBAL {name} = {value!r}")


@pytest.fixture
def kept(server: TlsServer) -> str:
    """Return a statement that begins a transaction: it reads a table that takes part in them."""
    server.query("CREATE TABLE IF NOT EXISTS app.kept (number INTEGER)")
    return "SELECT number FROM kept"


def init(**variables: object) -> dict[str, str]:
    """Return what makes a driver set session *variables* first thing."""
    return {"init_command": "SET " + ", ".join(f"SESSION {name} = {value}" for name, value in variables.items())}


@on_each(MYSQL)
async def test_of_the_server(make_client: MakeClient, set_global: SetGlobal) -> None:
    """A session copies the global value when it begins; with it comes how many the server takes."""
    client = make_client()
    async with client.connection():
        assert DEFAULT == client.limits
        set_global("wait_timeout", 88)
        async with client.connection():
            assert [88.0, 28800.0] == sorted(
                slot.limits["wait_timeout"] for slot in client.watched._ledger.slots.values()
            )
            assert DEFAULT | {"wait_timeout": 88.0} == client.limits
    assert 200 == client.snapshot().server_max_connections
    await client.check()


@on_each(MYSQL)
async def test_init_connect(make_client: MakeClient, set_global: SetGlobal) -> None:
    """The server may run statements at the beginning of each session of a user without privileges."""
    set_global("init_connect", "SET SESSION wait_timeout = 66")
    client = make_client()
    await client.use()
    assert DEFAULT | {"wait_timeout": 66.0} == client.limits


@on_each(MYSQL)
async def test_init_command(make_client: MakeClient) -> None:
    """So may the driver."""
    client = make_client(connect_args=init(wait_timeout=77))
    await client.use()
    assert DEFAULT | {"wait_timeout": 77.0} == client.limits


@on_each(MYSQL)
async def test_interactive(make_client: MakeClient, set_global: SetGlobal) -> None:
    """An interactive client's session copies another global value."""
    set_global("interactive_timeout", 44)
    client = make_client(connect_args={"client_flag": INTERACTIVE})
    await client.use()
    assert DEFAULT | {"wait_timeout": 44.0} == client.limits


@on_each(MYSQL)
async def test_connect_listener(make_client: MakeClient) -> None:
    """What a listener of the application's sets counts, also if it was there after the watch; the smallest is shown."""
    client = make_client(connect_args=init(wait_timeout=77))
    seconds = [1234, 55]

    @event.listens_for(client.engine, "connect")
    def set_limit(dbapi: Any, _record: Any) -> None:
        if seconds:
            cursor = dbapi.cursor()
            cursor.execute(f"SET SESSION wait_timeout = {seconds.pop(0)}")
            cursor.close()

    async with client.connection(), client.connection(), client.connection():
        limits = sorted(slot.limits["wait_timeout"] for slot in client.watched._ledger.slots.values())
        assert [55.0, 77.0, 1234.0] == limits
        assert DEFAULT | {"wait_timeout": 55.0} == client.limits
    await client.check()


@pytest.mark.parametrize(
    ("of_any", "of_reading", "of_writing", "limit"),
    [(30, 0, 0, 30.0), (0, 20, 0, 20.0), (0, 0, 10, 10.0), (30, 20, 10, 10.0), (10, 20, 30, 10.0)],
)
@on_each(MYSQL)
async def test_idle_transactions(
    make_client: MakeClient, of_any: int, of_reading: int, of_writing: int, limit: float
) -> None:
    """Of MariaDB's three limits for idle transactions the smallest that is set is shown."""
    three = {"idle_transaction_timeout": of_any, "idle_readonly_transaction_timeout": of_reading}
    client = make_client(connect_args=init(**three, idle_write_transaction_timeout=of_writing))
    await client.use()
    assert DEFAULT | {"idle_transaction_timeout": limit} == client.limits


@on_each(MYSQL)
async def test_without_limits_of_transactions(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """MySQL has none, and is not asked for them."""
    monkeypatch.setattr(poolwatch_server, "_MARIADB", "no statement at all")
    client = make_client(connect_args=init(wait_timeout=77, idle_transaction_timeout=10))

    @event.listens_for(client.engine, "checkout", insert=True)
    def pretend(*_: Any) -> None:
        client.engine.dialect.is_mariadb = False  # type: ignore[attr-defined]

    await client.use()
    assert {"wait_timeout": 77.0} == client.limits


@pytest.mark.parametrize(
    ("session", "outside", "inside"),
    [
        ({"wait_timeout": 1000, "idle_transaction_timeout": 100}, 1000, 100),
        ({"wait_timeout": 100, "idle_transaction_timeout": 1000}, 100, 1000),
        ({"wait_timeout": 1000}, 1000, 1000),
    ],
    ids=str,
)
@on_each(MYSQL)
async def test_deadlines(
    make_client: MakeClient, kept: str, session: Mapping[str, int], outside: int, inside: int
) -> None:
    """The limit for transactions replaces the other within one, where it is set, and does nothing outside."""
    client = make_client(connect_args=init(**session))
    async with client.connection() as connection:
        assert (outside, "safe") == look(client)
        await client.run(connection, kept)
        age(client)
        assert (inside, "safe" if inside == 1000 else "imminent") == look(client)
        await client.call(connection.commit)
        age(client)
        assert (outside, "safe" if outside == 1000 else "imminent") == look(client)


def age(client: Client) -> None:
    """Let the server have heard from the only connection so many seconds earlier."""
    assert client.slot.active is not None
    client.slot.active -= 95


def look(client: Client) -> tuple[float, str]:
    """Return how far the only connection's deadline is from its last activity, which a checkout has, and its risk."""
    snapshot = client.snapshot()
    ((state, risk),) = moved(snapshot.timeout_risk_connections)
    assert "checked_out" == state
    last, deadline = (
        getattr(snapshot, f"connection_{each}_timestamp_seconds")["0"] for each in ("last_activity", "deadline")
    )
    assert deadline == snapshot.next_deadline_timestamp_seconds["checked_out", "false"]
    return round(deadline - last, 3), risk


@on_each(MYSQL)
async def test_the_server_keeps_its_word(make_client: MakeClient, server: TlsServer, kept: str) -> None:
    """It drops a held connection in a transaction at the moment that we export, and leaves one outside alone."""
    client = make_client(connect_args=init(idle_transaction_timeout=1))
    async with client.connection() as outside:
        await client.run(outside, kept)
        other = await client.id_of(outside)
        await client.call(outside.commit)
        inside = await client.connect()
        await client.run(inside, kept)
        number = await client.id_of(inside)
        deadline = client.snapshot().next_deadline_timestamp_seconds["checked_out", "false"]
        last_seen, missed = await client.dropped(number)
        assert last_seen - 0.3 < deadline < missed + 0.3
        assert [other] == server.connections()
        await client.run(outside, kept)
        await client.call(inside.invalidate)
        await client.call(inside.close)


@on_each(MYSQL)
async def test_not_asked(make_client: MakeClient) -> None:
    """With server_limits=False the operator's own limit rules alone."""
    client = make_client(watching={"server_limits": False, "inactivity_limit": 350})
    await client.use()
    snapshot = client.snapshot()
    assert ({"configured": 350}, None) == (snapshot.inactivity_limit_seconds, snapshot.server_max_connections)
    assert {("idle", "safe"): 1} == moved(snapshot.timeout_risk_connections)


@on_each(MYSQL)
async def test_unknown_without_any(make_client: MakeClient) -> None:
    """Where no limit is known the risk is unknown and no deadline is set."""
    client = make_client(watching={"server_limits": False})
    await client.use()
    snapshot = client.snapshot()
    assert {} == snapshot.inactivity_limit_seconds
    assert {("idle", "unknown"): 1} == moved(snapshot.timeout_risk_connections)
    assert {inf} == set(snapshot.next_deadline_timestamp_seconds.values())


@pytest.mark.parametrize(("configured", "smaller"), [(350, 350), (99999, 28800)])
@on_each(MYSQL)
async def test_the_smaller_limit_rules(make_client: MakeClient, configured: int, smaller: int) -> None:
    """The operator's limit and the server's are both exported; the deadline obeys the smaller."""
    client = make_client(watching={"inactivity_limit": configured})
    await client.use()
    snapshot = client.snapshot()
    assert DEFAULT | {"configured": configured} == snapshot.inactivity_limit_seconds
    active = snapshot.connection_last_activity_timestamp_seconds["0"]
    assert {"0": active + smaller} == snapshot.connection_deadline_timestamp_seconds
    assert active + smaller == snapshot.next_deadline_timestamp_seconds["idle", "false"]


@pytest.mark.parametrize(("recycle", "protected"), [(99, "true"), (100, "false"), (-1, "false")])
@on_each(MYSQL[:1])
async def test_recycling_protects_below_the_limit(make_client: MakeClient, recycle: int, protected: str) -> None:
    """pool_recycle protects only if it is shorter than the limit."""
    client = make_client(watching={"inactivity_limit": 100}, pool_recycle=recycle)
    await client.use()
    deadlines = client.snapshot().next_deadline_timestamp_seconds
    assert [("idle", protected)] == [key for key, moment in deadlines.items() if moment < inf]


@on_each(MYSQL)
async def test_pre_ping_protects_where_it_works(variant: Any, make_client: MakeClient) -> None:
    """pool_pre_ping protects every connection but aiomysql's under uvloop."""
    client = make_client(pool_pre_ping=True)
    await client.use()
    deadlines = client.snapshot().next_deadline_timestamp_seconds
    protected = "false" if str(variant.driver) == "aiomysql-uvloop" else "true"
    assert [("idle", protected)] == [key for key, moment in deadlines.items() if moment < inf]
