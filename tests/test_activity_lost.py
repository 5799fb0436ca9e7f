"""What is sent on a lost connection is no activity: how long it had been silent is told when it is met."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from activity_steps import QUIET, THINK, execute, execute_raw, make
from proxies import Proxy
from stage import ending
from support import until
from variants import VARIANTS, on_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessions import Client
    from variants import TlsServer

    MakeClient = Callable[..., Client]

pytest_plugins = ["sessions"]
pytestmark = pytest.mark.anyio

PLAIN = [each for each in VARIANTS if not each.tls]
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
