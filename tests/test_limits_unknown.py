"""Where the question for limits gets no answer, or a useless one, checkouts work and the limit is unknown."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import psycopg
import pytest
from sqlalchemy import make_url

from databases import frozen
from poolwatch import server as poolwatch_server
from proxies import Proxy
from support import DEADLINE, moved, until
from variants import VARIANTS, on_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sessions import Client
    from variants import TlsServer

    MakeClient = Callable[..., Client]

pytest_plugins = ["sessions"]
pytestmark = [pytest.mark.anyio, pytest.mark.once]

PLAIN = [each for each in VARIANTS if not each.tls]
MYSQL = [each for each in PLAIN if each.driver.mysql]
POSTGRESQL = [each for each in PLAIN if not each.driver.mysql]
either_way = pytest.mark.parametrize(
    "options", [{}, {"isolation_level": "AUTOCOMMIT"}], ids=["transactions", "autocommit"]
)
# Seconds to wait for an answer that never comes; servers here are never so slow.
SHORT = 0.15


class Questions:
    """Counts a client's questions for limits, and does something beforehand.

    Args:
        monkeypatch: The test's own.
        before: What to do before each; it returns what to do afterwards.

    Attributes:
        count: How many there were.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, before: Callable[[], Callable[[], object] | None] | None = None
    ) -> None:
        ask = poolwatch_server.ask_limits
        self.count = 0

        def ask_so(*args: Any) -> Any:
            self.count += 1
            after = before() if before else None
            try:
                return ask(*args)
            finally:
                if after:
                    after()

        monkeypatch.setattr(poolwatch_server, "ask_limits", ask_so)


@contextmanager
def without_right(server: Any) -> Iterator[None]:
    """Let nobody read settings meanwhile."""
    address = f"host={server.directory} port={server.port} user=postgres dbname=app"
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("REVOKE EXECUTE ON FUNCTION current_setting(text, boolean) FROM PUBLIC")
        try:
            yield
        finally:
            connection.execute("GRANT EXECUTE ON FUNCTION current_setting(text, boolean) TO PUBLIC")


async def assert_refused(client: Client, questions: Questions) -> None:
    """Assert that no limit is known, that the only connection is neither lost nor harmed, and was asked once."""
    await client.check_unknown()
    assert (1, 1) == (questions.count, client.snapshot().connects_total)


@either_way
@on_each(POSTGRESQL)
async def test_no_right_on_postgresql(
    make_client: MakeClient, server: TlsServer, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """A user who may not read settings keeps the connection, in no transaction, and is not asked again."""
    questions = Questions(monkeypatch)
    client = make_client(**options)
    with without_right(server):
        await assert_refused(client, questions)


@pytest.mark.parametrize(
    "question", ["SELECT 1, 2, 3 FROM mysql.user", "SELECT @@session.no_such_variable, 1, 2", "SELECT nonsense("]
)
@either_way
@on_each(MYSQL)
async def test_refused_by_mysql(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, question: str, options: dict[str, Any]
) -> None:
    """So it is with any error that the server answers: no right, unknown variables, another dialect of SQL."""
    monkeypatch.setattr(poolwatch_server, "_MARIADB", question)
    questions = Questions(monkeypatch)
    await assert_refused(make_client(**options), questions)


@pytest.mark.parametrize("question", ["SELECT current_setting('no.such_setting'), 1, 2, 3", "SELECT nonsense("])
@either_way
@on_each(POSTGRESQL)
async def test_refused_by_postgresql(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, question: str, options: dict[str, Any]
) -> None:
    """As there."""
    monkeypatch.setattr(poolwatch_server, "_POSTGRESQL", question)
    questions = Questions(monkeypatch)
    await assert_refused(make_client(**options), questions)


@pytest.mark.parametrize(
    "answer",
    ["1", "'soon', 2, 3, 4", "NULL, NULL, NULL, NULL", "1, 0, 0, 0", "1, 2, -3, -3", "1, 100, 'NaN', 'NaN'"],
)
@on_each(PLAIN)
async def test_senseless_values(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """An answer in good order that makes no sense is worth nothing, and does no harm."""
    monkeypatch.setattr(poolwatch_server, "_MARIADB", f"SELECT {answer}")
    monkeypatch.setattr(poolwatch_server, "_POSTGRESQL", f"SELECT {answer}")
    questions = Questions(monkeypatch)
    await assert_refused(make_client(), questions)


@pytest.mark.parametrize("way", ["hang", "finish", "reset"])
@on_each(VARIANTS)
async def test_no_answer(make_client: MakeClient, server: TlsServer, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """A connection that is lost with the question is replaced unasked, and nobody is asked for a minute."""
    with Proxy(server) as proxy:
        client = make_client(port=proxy.port)

        def pass_time(seconds: float) -> None:
            # Not the clock: what is held has begun by it.
            assert client.question._quiet_until is not None
            client.question._quiet_until -= seconds

        client.question.patience = SHORT if way == "hang" else 5

        def before() -> Callable[[], object] | None:
            if way != "hang":
                getattr(proxy, way)()
                return None
            proxy.hangs = True
            return lambda: setattr(proxy, "hangs", False)

        with monkeypatch.context() as context:
            questions = Questions(context, before)
            async with asyncio.timeout(DEADLINE):
                await client.check_unknown()
            snapshot = client.snapshot()
            assert (1, 2) == (questions.count, snapshot.connects_total)
            assert {"disconnect": 1} == moved(snapshot.closes_total) == moved(snapshot.reconnects_total)
            assert (0 if way == "hang" else 1) == sum(snapshot.disconnects_total.values())
            pass_time(55)
            async with client.connection(), client.connection():
                assert {} == client.limits
            assert 1 == questions.count
        questions = Questions(monkeypatch)
        client.question.patience = 5
        pass_time(6)
        async with client.connection(), client.connection():
            assert client.limits
        assert 2 == questions.count
        await client.use()
        assert 2 == questions.count
        await client.check()
        await client.close()


@on_each(PLAIN)
async def test_frozen(make_client: MakeClient, server: TlsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stops answering at that moment delays its user for as long as it does, and not for ever."""
    client = make_client()
    client.question.patience = SHORT
    with ExitStack() as frost:
        questions = Questions(monkeypatch, lambda: frost.enter_context(frozen(server)))
        task = asyncio.create_task(client.use())
        await until(lambda: client.question._quiet_until is not None, "the end of patience")
    assert 1 == await task
    assert (1, 2) == (questions.count, client.snapshot().connects_total)
    await client.check_unknown()


@on_each(PLAIN)
async def test_lost_again(make_client: MakeClient, server: TlsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection that takes the place of one that was lost so is lost itself: by its user, as without us."""
    with Proxy(server) as proxy:
        client = make_client(port=proxy.port)

        def before() -> None:
            proxy.finish()

        Questions(monkeypatch, before)
        async with client.connection() as connection:
            proxy.finish()
            with pytest.raises(Exception, match=r"(?i)lost|clos|gone"):
                await client.run(connection, "SELECT 1")
            await client.call(connection.invalidate)
        await client.check_unknown()
        await client.close()


def test_what_stands_in_for_a_driver() -> None:
    """In somebody's tests a connection may be anything: nobody is asked, and nothing is counted as our error."""
    assert None is poolwatch_server.deadline_for(make_url("mysql+pymysql://").get_dialect()(), Mock(), 1.0)
