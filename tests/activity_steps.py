"""What applications do with a connection, and how far off the last activity that we export is afterwards."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy import Connection, PoolProxiedConnection

    from sessions import Client
    from variants import TlsServer

    Step = Callable[[Client, Any], Awaitable[None]]

# The think time between two steps is what a wrong mark would be off by; half of it is the line between.
THINK = 0.15
AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT"}
QUIET = {"skip_autocommit_rollback": True}
MODES: list[dict[str, Any]] = [
    {},
    {"pool_reset_on_return": None},
    {"pool_reset_on_return": "commit"},
    {"pool_pre_ping": True},
    QUIET,
    AUTOCOMMIT,
    AUTOCOMMIT | QUIET,
]
HEARD = {
    "mysql": "SELECT UNIX_TIMESTAMP(SYSDATE(6)) - TIME_MS / 1000 FROM information_schema.processlist WHERE id = {}",
    "postgresql": "SELECT extract(epoch FROM state_change) FROM pg_stat_activity WHERE pid = {}",
}


async def think() -> None:
    """Let time pass between two steps."""
    await asyncio.sleep(THINK)


async def execute(client: Client, connection: Connection) -> None:
    """Run a statement, think."""
    await client.run(connection, "SELECT 1")
    await think()


async def execute_and_commit(client: Client, connection: Connection) -> None:
    """Run a statement, think, commit, think."""
    await execute(client, connection)
    await client.call(connection.commit)
    await think()


async def execute_and_roll_back(client: Client, connection: Connection) -> None:
    """Run a statement, think, roll back, think."""
    await execute(client, connection)
    await client.call(connection.rollback)
    await think()


async def commit_nothing(client: Client, connection: Connection) -> None:
    """Begin, think, commit without a statement, think."""
    transaction = await client.call(connection.begin)
    await think()
    await client.call(transaction.commit)
    await think()


async def execute_for_long(client: Client, connection: Connection) -> None:
    """Run a statement that takes a while, of which the end counts, think."""
    pause = "SELECT SLEEP({})" if connection.dialect.name == "mysql" else "SELECT 1 FROM pg_sleep({})"
    await client.run(connection, pause.format(THINK))
    await think()


async def fail(client: Client, connection: Connection) -> None:
    """Run a statement that fails, think."""
    with pytest.raises(Exception, match="nonsense"):
        await client.run(connection, "SELECT nonsense")
    await think()


async def do_nothing(_client: Client, _connection: Connection | PoolProxiedConnection) -> None:
    """Hold the connection without a statement."""
    await think()


async def execute_raw(client: Client, connection: PoolProxiedConnection) -> None:
    """Run a statement with the driver's own cursor, think."""

    def work() -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        cursor.fetchall()
        cursor.close()

    await client.call(work)
    await think()


STEPS: list[Step] = [
    execute,
    execute_and_commit,
    execute_and_roll_back,
    commit_nothing,
    execute_for_long,
    fail,
    do_nothing,
]


def make(make_client: Callable[..., Client], options: dict[str, Any]) -> Client:
    """Return a client with these *options*, less what its SQLAlchemy does not know: older ones send the ROLLBACK."""
    try:
        return make_client(**options)
    except TypeError as error:
        assert "skip_autocommit_rollback" in str(error)  # noqa: PT017
        return make_client(**{name: value for name, value in options.items() if name not in QUIET})


async def compare(
    make_client: Callable[..., Client], server: TlsServer, options: dict[str, Any], raw: list[Step]
) -> dict[str, float]:
    """Take all steps, and those of *raw* on connections as the driver has them, whose holders tell us nothing.

    Each has a connection of its own, and all are taken at the same time. Returns by how many seconds we were off after
    which, while it was held and when it was given back, where that was too many three times in a row: a wrong mark
    always is, and a machine that stalls is not.
    """
    client = make(make_client, options | {"pool_size": len(STEPS) + len(raw)})
    held = [await client.connect() for _ in (*STEPS, *raw)]
    ids = {each.connection.driver_connection: await client.id_of(each) for each in held}
    for each in held:
        await client.call(each.close)

    async def off(driver: Any) -> float:
        question = HEARD[client.engine.dialect.name].format(ids[driver])
        ((heard,),) = await asyncio.to_thread(server.query, question)
        moments = client.snapshot().connection_last_activity_timestamp_seconds
        slots = client.watched._ledger.slots.values()
        (number,) = (slot.number for slot in slots if slot.record().driver_connection is driver)
        return moments[str(number)] - float(heard)

    async def take(step: Step) -> dict[str, float]:
        connection = await client.connect()
        driver = connection.connection.driver_connection
        await step(client, connection)
        found = {f"{step.__name__}, held": await off(driver)}
        await client.call(connection.close)
        return found | {f"{step.__name__}, idle": await off(driver)}

    async def take_raw(step: Step) -> dict[str, float]:
        connection = await client.call(client.engine.raw_connection)
        driver = connection.driver_connection
        await step(client, connection)
        await client.call(connection.close)
        return {f"{step.__name__}, raw": await off(driver)}

    wrong: dict[str, float] = {}
    for _ in range(3):
        await think()
        found = await asyncio.gather(*map(take, STEPS), *map(take_raw, raw))
        wrong = {name: seconds for each in found for name, seconds in each.items() if abs(seconds) > THINK / 2}
        if not wrong:
            break
    return wrong
