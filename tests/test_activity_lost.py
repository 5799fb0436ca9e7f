"""What is sent on a lost connection is no activity: how long it had been silent is told when it is met."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from activity_steps import QUIET, THINK, execute, execute_raw, make
from proxies import Proxy
from stage import ending
from support import quiet, until
from variants import VARIANTS, on_each

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sessions import Client
    from variants import TlsServer

    MakeClient = Callable[..., Client]

pytest_plugins = ["sessions"]
pytestmark = pytest.mark.anyio

PLAIN = [each for each in VARIANTS if not each.tls]
ASYNC = [each for each in PLAIN if not each.sync]
# In both the pool sends something when it takes a connection back that is in a transaction.
SENDING: list[dict[str, Any]] = [{}, QUIET]


@pytest.mark.parametrize("options", SENDING, ids=str)
@on_each(PLAIN)
async def test_found_on_return(make_client: MakeClient, server: TlsServer, options: dict[str, Any]) -> None:
    """The pool's own ROLLBACK or COMMIT cannot be sent."""
    with Proxy(server) as proxy:
        client = make(make_client, options | {"port": proxy.port})
        await client.use()
        connection = await client.call(client.engine.raw_connection)
        await execute_raw(client, connection)
        proxy.finish()
        await until(lambda: client.adapter.is_lost(connection.driver_connection) is True, "the loss")
        await client.call(connection.close)
        snapshot = client.snapshot()
        assert 1 == sum(snapshot.disconnects_total.values())
        assert snapshot.shortest_fatal_inactivity_seconds is not None
        assert snapshot.shortest_fatal_inactivity_seconds > THINK / 2
        await client.close()


@pytest.mark.parametrize("way", ["execute", "commit", "rollback"])
@on_each(PLAIN)
async def test_found_in_use(make_client: MakeClient, server: TlsServer, way: str) -> None:
    """The user's own statement, COMMIT or ROLLBACK cannot be sent."""
    with Proxy(server) as proxy:
        client = make_client(port=proxy.port)
        connection = await client.connect()
        await execute(client, connection)
        proxy.finish()
        await until(lambda: client.adapter.is_lost(connection.connection.driver_connection) is True, "the loss")
        await ending(execute(client, connection) if way == "execute" else client.call(getattr(connection, way)))
        await ending(client.call(connection.close))
        snapshot = client.snapshot()
        assert 1 == sum(snapshot.disconnects_total.values())
        assert snapshot.shortest_fatal_inactivity_seconds is not None
        assert snapshot.shortest_fatal_inactivity_seconds > THINK / 2
        await client.close()


@pytest.mark.filterwarnings("ignore:.*garbage collector is trying to clean up.*")
@on_each(ASYNC)
async def test_collected_before_it_is_closed(make_client: MakeClient, server: TlsServer) -> None:
    """A stream that nobody closed is closed by the event loop, after the garbage collector took its connection."""
    assert server
    client, closed = make_client(), []

    async def stream() -> AsyncIterator[None]:
        connection = await client.connect()
        await client.run(connection, "SELECT 1")
        try:
            yield
        finally:
            # Of the driver's, for a ROLLBACK on nothing.
            with suppress(Exception):
                await client.call(connection.close)
            closed.append(connection)

    abandoned: list[Any] = [stream()]
    await anext(abandoned[0])
    quiet(client.watched, 2.0)
    abandoned.append(abandoned)
    del abandoned
    gc.collect()
    await until(lambda: bool(closed), "the end of the stream")
    assert 1 == client.snapshot().leaks_total
    await client.close()
