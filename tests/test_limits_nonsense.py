"""Where the question for limits is answered by something that speaks another language, checkouts work all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from poolwatch import server as poolwatch_server
from proxies import Eavesdropper
from variants import VARIANTS, on_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessions import Client
    from variants import TlsServer

    MakeClient = Callable[..., Client]

pytest_plugins = ["sessions"]
pytestmark = [pytest.mark.anyio, pytest.mark.once]

MYSQL = [each for each in VARIANTS if each.driver.mysql and not each.tls]
POSTGRESQL = [each for each in VARIANTS if not each.driver.mysql and not each.tls]
# Seconds to wait for the rest of an answer that never comes.
SHORT = 0.15


def mysql(number: int, body: bytes) -> bytes:
    """Return a packet of MySQL's protocol, this *number* of its exchange."""
    return len(body).to_bytes(3, "little") + bytes([number]) + body


def postgresql(kind: bytes, body: bytes = b"") -> bytes:
    """Return a message of PostgreSQL's protocol."""
    return kind + (len(body) + 4).to_bytes(4, "big") + body


HTTP = b"HTTP/1.1 400 Bad Request\r\n\r\n"
OK = mysql(1, b"\0\0\0\2\0\0\0")
READY, IN_TRANSACTION = postgresql(b"Z", b"I"), postgresql(b"Z", b"T")
COLUMN = postgresql(b"T", b"\0\1a\0" + b"\0" * 9 + b"\x19" + b"\xff" * 6 + b"\0\0")
ROW = COLUMN + postgresql(b"D", b"\0\1\0\0\0\4soon") + postgresql(b"C", b"SELECT 1\0")
COPY = postgresql(b"H", b"\0\0\1\0\0") + postgresql(b"d", b"soon\n") + postgresql(b"c") + postgresql(b"C", b"COPY 1\0")


async def assert_survives(client: Client, proxy: Eavesdropper, nonsense: bytes) -> None:
    """Assert that the next user of *client* works, though the question is answered with *nonsense*."""
    client.question.patience = SHORT
    proxy.answer = nonsense
    await client.check_unknown()
    assert 1 == proxy.questions
    assert client.snapshot().connects_total <= 2


@pytest.mark.parametrize(
    "nonsense",
    [
        pytest.param(HTTP, id="another protocol"),
        pytest.param(b"\xff" * 32, id="noise"),
        pytest.param(mysql(9, b"\xff"), id="of another exchange"),
        pytest.param(mysql(0, b"\xff"), id="of none"),
        pytest.param(OK, id="no rows"),
        pytest.param(mysql(1, b""), id="empty"),
        pytest.param(mysql(1, b"\xff\x10"), id="half an error"),
        pytest.param(mysql(1, b"\xfe\0\0\2\0"), id="an end"),
        pytest.param(mysql(1, b"\xfb/etc/passwd"), id="a question"),
    ],
)
@on_each(MYSQL)
async def test_nonsense_on_mysql(make_client: MakeClient, server: TlsServer, nonsense: bytes) -> None:
    """Whatever a driver makes of nonsense, the connection is replaced unless it is in step."""
    with Eavesdropper(server) as proxy:
        client = make_client(port=proxy.port)
        await assert_survives(client, proxy, nonsense)
        await client.close()


# asyncmy's compiled parser reads on behind the end of the packet, which now and then is the end of the process.
@on_each([each for each in MYSQL if each.driver.name != "asyncmy"])
async def test_half_a_column(make_client: MakeClient, server: TlsServer) -> None:
    """A column that is longer than its packet is as much nonsense as the rest."""
    with Eavesdropper(server) as proxy:
        client = make_client(port=proxy.port)
        await assert_survives(client, proxy, mysql(1, b"\1") + mysql(2, b"\xfc\xff\xff\xff\xff"))
        await client.close()


@on_each([each for each in MYSQL if each.driver.name != "pymysql"])
async def test_one_answer_too_many(make_client: MakeClient, server: TlsServer) -> None:
    """What is left of an answer would be taken for the next; PyMySQL does not show what it has read ahead."""
    with Eavesdropper(server) as proxy:
        client = make_client(port=proxy.port)
        await assert_survives(client, proxy, OK + OK)
        await client.close()


@pytest.mark.parametrize(
    "nonsense",
    [
        pytest.param(HTTP, id="another protocol"),
        pytest.param(b"\xff" * 32, id="noise"),
        pytest.param(READY, id="nothing"),
        pytest.param(postgresql(b"C", b"SELECT 0\0") + READY, id="no rows"),
        pytest.param(postgresql(b"E", b"\0") + READY, id="an empty error"),
        pytest.param(postgresql(b"G", b"\0\0\0"), id="a question"),
        pytest.param(COPY + READY, id="a copy"),
        pytest.param(COPY.replace(b"soon", b"\xff\xfe\xfd\xfc") + READY, id="a copy of noise"),
        pytest.param(COPY + IN_TRANSACTION, id="a copy in a transaction"),
        pytest.param(ROW + READY, id="rows"),
        pytest.param(ROW + IN_TRANSACTION, id="rows in a transaction"),
    ],
)
@on_each(POSTGRESQL)
async def test_nonsense_on_postgresql(make_client: MakeClient, server: TlsServer, nonsense: bytes) -> None:
    """As there."""
    with Eavesdropper(server) as proxy:
        client = make_client(port=proxy.port)
        await assert_survives(client, proxy, nonsense)
        await client.close()


@pytest.mark.parametrize(("number", "connections"), [(1142, 1), (2014, 2), (2027, 2), (0, 2)])
@on_each(MYSQL)
async def test_numbers(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, number: int, connections: int) -> None:
    """Errors that the server numbers are answers to the question; what a driver says of its own is a broken stream."""

    def fail(dialect: Any, _dbapi: Any) -> None:
        raise dialect.dbapi.OperationalError(number, "in the test")

    monkeypatch.setitem(poolwatch_server._QUESTIONS, "mysql", fail)
    client = make_client()
    await client.check_unknown()
    assert connections == client.snapshot().connects_total
