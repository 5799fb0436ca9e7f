"""Connections that died in the pool are seen dead at the next read, with every driver, plain and with TLS.

Nobody has used them since, and reading sends nothing.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from poolwatch import sockets
from proxies import Proxy
from support import DEADLINE, until
from variants import VARIANTS, on_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from variants import TlsServer, Variant, WatchedPool

pytest_plugins = ["tls"]
pytestmark = [pytest.mark.anyio, pytest.mark.once]

ASYNC = [each for each in VARIANTS if not each.sync]


async def find(pool: WatchedPool, **states: int) -> None:
    """Wait until the pool's connections are in these *states*, which they stay in from then on."""
    await until(lambda: states == pool.states(), f"{states}")
    # What the event loop comes to notice besides, changes nothing.
    for _ in range(10):
        await asyncio.sleep(0.001)
        assert states == pool.states()


@on_each(VARIANTS)
async def test_killed(make_pool: Callable[..., WatchedPool], server: TlsServer) -> None:
    """Of two connections the one that the server's operator killed is dead."""
    pool = make_pool()
    victim, _ = await pool.fill("SELECT 1", "SELECT 1")
    assert {"idle": 2} == pool.states()
    server.kill(victim)
    await find(pool, idle=1, dead=1)
    assert pool.adapter.sees_death


@on_each(VARIANTS)
async def test_inactive(make_pool: Callable[..., WatchedPool], server: TlsServer) -> None:
    """Of two connections the one whose session has the shorter limit is dead, once the server has dropped it."""
    pool = make_pool()
    await pool.fill(server.impatience, "SELECT 1")
    await find(pool, idle=1, dead=1)


@on_each(VARIANTS)
async def test_server_stopped(make_pool: Callable[..., WatchedPool], server: TlsServer) -> None:
    """All are dead while the server is away, and when it is back."""
    pool = make_pool()
    await pool.fill("SELECT 1", "SELECT 1")
    server.stop()
    try:
        await find(pool, dead=2)
    finally:
        server.start()
    assert {"dead": 2} == pool.states()


@pytest.mark.parametrize("end", [Proxy.finish, Proxy.reset])
@on_each(VARIANTS)
async def test_ended_in_between(
    make_pool: Callable[..., WatchedPool], server: TlsServer, end: Callable[[Proxy], None]
) -> None:
    """Of two connections the one through a proxy that ends it is dead; the server may not know."""
    with Proxy(server) as proxy:
        pool = make_pool(proxy.port)
        await pool.fill("SELECT 1", "SELECT 1")
        assert {"idle": 2} == pool.states()
        end(proxy)
        await find(pool, idle=1, dead=1)


@on_each(ASYNC)
async def test_before_the_event_loop_knows(make_pool: Callable[..., WatchedPool], server: TlsServer) -> None:
    """What the kernel knows is enough, while the event loop is busy with something else."""
    pool = make_pool()
    victim, _ = await pool.fill("SELECT 1", "SELECT 1")
    server.kill(victim)
    deadline = time.monotonic() + DEADLINE
    while {"idle": 1, "dead": 1} != pool.states():
        assert time.monotonic() < deadline, "never seen by the kernel"


@on_each(VARIANTS)
async def test_without_help_from_the_kernel(
    variant: Variant, make_pool: Callable[..., WatchedPool], server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where poll(2) has no word for it, as it has on Linux alone, what the event loop tells the driver is enough.

    A socket that no event loop reads counts as idle there.
    """
    monkeypatch.setattr(sockets, "_CLOSED", 0)
    pool = make_pool()
    victim, _ = await pool.fill("SELECT 1", "SELECT 1")
    server.kill(victim)
    if variant.sync or variant.driver.name == "psycopg":
        await find(pool, idle=2)
    else:
        await find(pool, idle=1, dead=1)


@on_each(VARIANTS)
async def test_reading_sends_nothing(make_pool: Callable[..., WatchedPool], server: TlsServer) -> None:
    """The server hears nothing from the living while they and the dead are looked at, and they are alive afterwards."""
    pool = make_pool()
    victim, survivor = await pool.fill("SELECT 1", "SELECT 1")
    server.kill(victim)
    await until(lambda: [survivor] == server.connections(), "the end of all others")
    before = server.heard()
    await find(pool, idle=1, dead=1)
    assert before == server.heard()
    assert [survivor] == server.connections()
