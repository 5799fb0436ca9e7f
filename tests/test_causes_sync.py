"""Why a sync engine's connections were found lost; the async ones' situations are many more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, exc, make_url, text

from handles import wait_for
from poolwatch import watch
from proxies import Proxy
from support import moved

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from sqlalchemy import Engine

    from poolwatch.demo.servers import MariaDB

# PyMySQL would make a TLS context for each connection.
PLAIN = {"ssl_disabled": True}


def fill(engine: Engine, connections: int) -> list[int]:
    """Leave *connections* idle in the pool; return their ids on the server."""
    held = [engine.connect() for _ in range(connections)]
    ids = [each.scalar(text("SELECT CONNECTION_ID()")) for each in held]
    for each in held:
        each.close()
    return [number for number in ids if isinstance(number, int)]


def use(engine: Engine) -> None:
    """Check a connection out and run a statement."""
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


@pytest.mark.parametrize(
    ("way", "cause"), [("kill", "killed"), ("silence", "inactivity"), ("reset", "network"), ("finish", "killed")]
)
@pytest.mark.parametrize(("pre_ping", "phase"), [(False, "in_use"), (True, "pre_ping")])
def test_causes(
    mariadb: MariaDB, registry: CollectorRegistry, way: str, cause: str, *, pre_ping: bool, phase: str
) -> None:
    """What PyMySQL's errors and socket tell."""
    with Proxy(mariadb) as proxy:
        init = {"init_command": "SET SESSION wait_timeout = 1"} if way == "silence" else {}
        url = make_url(mariadb.url("pymysql")).set(port=proxy.port)
        engine = create_engine(url, pool_pre_ping=pre_ping, connect_args={**PLAIN, **init})
        watched = watch(engine, registry=registry)
        first, *_ = fill(engine, 2 if way == "kill" else 1)
        if way == "kill":
            mariadb.kill(first)
        elif way == "silence":
            wait_for(lambda: watched.snapshot().connections["dead"] == 1, "a dead connection")
        else:
            getattr(proxy, way)()
        wait_for(lambda: watched.snapshot().connections["dead"] == 1, "a dead connection")
        if pre_ping:
            use(engine)
        else:
            with pytest.raises(exc.OperationalError):
                use(engine)
        use(engine)
        assert {(cause, phase): 1} == moved(watched.snapshot().disconnects_total)
        engine.dispose()


def test_dropped_without_a_word(mariadb: MariaDB, registry: CollectorRegistry) -> None:
    """A driver that gives up waiting for an answer has lost the connection, by what the path did."""
    with Proxy(mariadb, idle_limit=0.3, answers=False) as proxy:
        url = make_url(mariadb.url("pymysql")).set(port=proxy.port)
        engine = create_engine(url, connect_args={**PLAIN, "read_timeout": 1})
        watched = watch(engine, registry=registry)
        fill(engine, 1)
        wait_for(lambda: proxy.silence > 0.3, "silence")
        with pytest.raises(exc.OperationalError):
            use(engine)
        snapshot = watched.snapshot()
        assert {("network", "in_use"): 1} == moved(snapshot.disconnects_total)
        # Not the second that the driver waited.
        assert 0.2 < (snapshot.shortest_fatal_inactivity_seconds or 0) < 1
        engine.dispose()
