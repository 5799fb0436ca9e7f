"""Each session's own limits as PostgreSQL has them, from every source, and what they mean for deadlines."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from poolwatch import server as poolwatch_server
from support import moved
from variants import VARIANTS, on_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sessions import Client
    from variants import TlsServer, Variant

    MakeClient = Callable[..., Client]

pytest_plugins = ["sessions"]
pytestmark = pytest.mark.anyio

POSTGRESQL = [each for each in VARIANTS if not each.driver.mysql and not each.tls]
OUTSIDE, INSIDE = "idle_session_timeout", "idle_in_transaction_session_timeout"
DEFAULT = {OUTSIDE: inf, INSIDE: inf}


@pytest.fixture
def altered(server: TlsServer) -> Iterator[Callable[[str], None]]:
    """Return a function that sets something for sessions to come, of a role or a database; it is reset afterwards."""
    done: list[str] = []

    def alter(what: str) -> None:
        done.append(what.partition(" SET ")[0])
        server.query(f"ALTER {what}")

    yield alter
    for each in done:
        server.query(f"ALTER {each} RESET ALL")


def session(variant: Variant, **settings: str) -> dict[str, Any]:
    """Return what makes a driver ask for *settings* when it connects."""
    if variant.driver.name == "asyncpg":
        return {"server_settings": settings}
    return {"options": " ".join(f"-c {name}={value}" for name, value in settings.items())}


@on_each(POSTGRESQL)
async def test_none(make_client: MakeClient) -> None:
    """The server sets no limit by default; how many connections it takes is known with that."""
    client = make_client()
    await client.use()
    assert DEFAULT == client.limits
    assert {("idle", "safe"): 1} == moved(client.snapshot().timeout_risk_connections)
    assert 100 == client.snapshot().server_max_connections
    await client.check()


@pytest.mark.parametrize("whose", ["ROLE app", "DATABASE app", "ROLE app IN DATABASE app"])
@on_each(POSTGRESQL)
async def test_of_the_server(make_client: MakeClient, altered: Callable[[str], None], whose: str) -> None:
    """A session copies what is set for its role and its database when it begins."""
    client = make_client()
    async with client.connection():
        altered(f"{whose} SET {OUTSIDE} = '77s'")
        assert DEFAULT == client.limits
        async with client.connection():
            assert DEFAULT | {OUTSIDE: 77.0} == client.limits


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({OUTSIDE: "1500ms"}, {OUTSIDE: 1.5}),
        ({INSIDE: "1min"}, {INSIDE: 60.0}),
        ({OUTSIDE: "24d", INSIDE: "0"}, {OUTSIDE: 2073600.0}),
        ({OUTSIDE: "90061s", "IntervalStyle": "sql_standard"}, {OUTSIDE: 90061.0}),
    ],
    ids=str,
)
@on_each(POSTGRESQL)
async def test_connect_args(
    variant: Variant, make_client: MakeClient, settings: dict[str, str], expected: dict[str, float]
) -> None:
    """The driver may set them when it connects, in any unit."""
    client = make_client(connect_args=session(variant, **settings))
    await client.use()
    assert DEFAULT | expected == client.limits


@on_each(POSTGRESQL)
async def test_connect_listener(variant: Variant, make_client: MakeClient) -> None:
    """What a listener of the application's sets counts, also if it was there after the watch; the smallest is shown."""
    client = make_client(connect_args=session(variant, **{OUTSIDE: "77s"}))
    seconds = [1234, 55]

    @event.listens_for(client.engine, "connect")
    def set_limit(dbapi: Any, _record: Any) -> None:
        if seconds:
            cursor = dbapi.cursor()
            cursor.execute(f"SET {OUTSIDE} = '{seconds.pop(0)}s'")
            cursor.close()
            dbapi.commit()

    async with client.connection(), client.connection(), client.connection():
        limits = sorted(slot.limits[OUTSIDE] for slot in client.watched._ledger.slots.values())
        assert [55.0, 77.0, 1234.0] == limits
        assert DEFAULT | {OUTSIDE: 55.0} == client.limits
    await client.check()


@on_each(POSTGRESQL)
async def test_without_a_limit_of_sessions(
    variant: Variant, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers before PostgreSQL 14 have the one for transactions alone."""
    question = poolwatch_server._POSTGRESQL
    assert f"'{OUTSIDE}'" in question
    monkeypatch.setattr(poolwatch_server, "_POSTGRESQL", question.replace(OUTSIDE, "not_yet_invented"))
    client = make_client(connect_args=session(variant, **{INSIDE: "77s"}))
    async with client.connection() as connection:
        assert {INSIDE: 77.0} == client.limits
        assert (None, "unknown") == look(client)
        await client.run(connection, "SELECT 1")
        assert (77, "safe") == look(client)


@pytest.mark.parametrize(
    ("settings", "outside", "inside"),
    [
        ({OUTSIDE: "1000s", INSIDE: "100s"}, 1000, 100),
        ({OUTSIDE: "100s", INSIDE: "1000s"}, 100, 1000),
        ({OUTSIDE: "100s"}, 100, inf),
        ({INSIDE: "100s"}, inf, 100),
    ],
    ids=str,
)
@on_each(POSTGRESQL)
async def test_deadlines(
    variant: Variant, make_client: MakeClient, settings: dict[str, str], outside: float, inside: float
) -> None:
    """The limit for transactions replaces the other within one, set or not, and does nothing outside."""
    client = make_client(connect_args=session(variant, **settings))
    async with client.connection() as connection:
        assert (outside, "safe") == look(client)
        await client.run(connection, "SELECT 1")
        age(client)
        assert (inside, "imminent" if inside == 100 else "safe") == look(client)
        await client.call(connection.commit)
        age(client)
        assert (outside, "imminent" if outside == 100 else "safe") == look(client)


@on_each(POSTGRESQL)
async def test_deadlines_after_an_error(variant: Variant, make_client: MakeClient) -> None:
    """A transaction that has failed is one until it is rolled back."""
    client = make_client(connect_args=session(variant, **{INSIDE: "100s"}))
    async with client.connection() as connection:
        with pytest.raises(Exception, match="nonsense"):
            await client.run(connection, "SELECT nonsense")
        assert 100 == look(client)[0]
        await client.call(connection.rollback)
        assert inf == look(client)[0]


@on_each(POSTGRESQL)
async def test_no_transactions_under_autocommit(variant: Variant, make_client: MakeClient) -> None:
    """There the limit for them never acts."""
    client = make_client(connect_args=session(variant, **{INSIDE: "100s"}), isolation_level="AUTOCOMMIT")
    async with client.connection() as connection:
        await client.run(connection, "SELECT 1")
        assert (inf, "safe") == look(client)


def age(client: Client) -> None:
    """Let the server have heard from the only connection so many seconds earlier."""
    assert client.slot.active is not None
    client.slot.active -= 95


def look(client: Client) -> tuple[float | None, str]:
    """Return how far the only connection's deadline is from its last activity, which a checkout has, and its risk."""
    snapshot = client.snapshot()
    ((state, risk),) = moved(snapshot.timeout_risk_connections)
    assert "checked_out" == state
    last = snapshot.connection_last_activity_timestamp_seconds["0"]
    deadline = snapshot.connection_deadline_timestamp_seconds.get("0")
    assert (inf if deadline is None else deadline) == snapshot.next_deadline_timestamp_seconds["checked_out", "false"]
    return None if deadline is None else round(deadline - last, 3), risk


@pytest.mark.parametrize("limit", [OUTSIDE, INSIDE])
@on_each(POSTGRESQL)
async def test_the_server_keeps_its_word(
    variant: Variant, make_client: MakeClient, server: TlsServer, limit: str
) -> None:
    """It drops held connections on the one side of the limit at the moment that we export, and on the other none."""
    client = make_client(connect_args=session(variant, **{limit: "1s"}))
    async with client.connection() as one, client.connection() as other:
        dropped, spared = (one, other) if limit == OUTSIDE else (other, one)
        ids = [await client.id_of(each) for each in (dropped, spared)]
        # The one that is spared is silent for longer.
        await client.call(one.commit)
        await client.run(other, "SELECT 1")
        if limit == OUTSIDE:
            await client.run(one, "SELECT 1")
            await client.call(one.commit)
        deadline = client.snapshot().next_deadline_timestamp_seconds["checked_out", "false"]
        last_seen, missed = await client.dropped(ids[0])
        assert last_seen - 0.3 < deadline < missed + 0.3
        assert ids[1:] == server.connections()
        await client.run(spared, "SELECT 1")
        await client.call(dropped.invalidate)
