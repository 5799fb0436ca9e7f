"""A limit that only the path to the server has: what was survived, what was fatal; and what a server's goodbye says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from proxies import Proxy
from stage import ending
from support import moved, until, use

if TYPE_CHECKING:
    from stage import Stage

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.alike,
    pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up"),
]

SURVIVED, LIMIT = 0.15, 0.4
GOODBYE = b"\xff\xbf\x0f#HY000The client was disconnected by the server because of inactivity."


async def silence(proxy: Proxy, seconds: float) -> None:
    """Let nothing be heard for so long."""
    await until(lambda: proxy.silence > seconds, "silence")


@pytest.mark.parametrize(("options", "phase"), [({}, "in_use"), ({"pool_pre_ping": True}, "pre_ping")])
async def test_dropped_by_something_in_between(stage: Stage, options: dict[str, Any], phase: str) -> None:
    """Like a load balancer it forgets, says nothing, and resets when somebody comes back."""
    with Proxy(stage.server, idle_limit=LIMIT) as proxy:
        engine = stage.engine(port=proxy.port, **options)
        (watched,) = stage.watches
        assert None is watched.snapshot().longest_survived_inactivity_seconds
        await stage.fill(engine, 1)
        await silence(proxy, SURVIVED)
        await use(engine)
        survived = watched.snapshot().longest_survived_inactivity_seconds
        assert survived is not None
        # The proxy counts from a moment before the answer reaches us.
        assert 0.8 * SURVIVED < survived < LIMIT
        assert None is watched.snapshot().shortest_fatal_inactivity_seconds
        await silence(proxy, LIMIT)
        assert 1 == watched.snapshot().connections["idle"]
        await ending(use(engine))
        assert {("network", phase): 1} == moved(watched.snapshot().disconnects_total)
        fatal = watched.snapshot().shortest_fatal_inactivity_seconds
        assert fatal is not None
        assert survived < 0.8 * LIMIT < fatal
        assert survived <= (watched.snapshot().longest_survived_inactivity_seconds or 0)


async def test_known_to_the_operator(stage: Stage) -> None:
    """A limit that was configured explains the loss."""
    with Proxy(stage.server, idle_limit=LIMIT) as proxy:
        engine = stage.engine(port=proxy.port)
        (watched,) = stage.watches
        watched.adjust({"inactivity_limit": LIMIT})
        await stage.fill(engine, 1)
        await silence(proxy, LIMIT)
        await ending(use(engine))
        assert {("inactivity", "in_use"): 1} == moved(watched.snapshot().disconnects_total)
        assert None is watched.snapshot().shortest_fatal_inactivity_seconds


async def test_dead_for_long(stage: Stage) -> None:
    """What counts is when it ended, as far as somebody has read meanwhile, and not when it was met."""
    with Proxy(stage.server) as proxy:
        engine = stage.engine(port=proxy.port)
        (watched,) = stage.watches
        await stage.fill(engine, 1)
        await silence(proxy, SURVIVED)
        proxy.reset()
        await until(lambda: watched.snapshot().connections["dead"] == 1, "a dead connection")
        await stage.hear()
        (slot,) = watched._ledger.slots.values()
        assert slot.active is not None
        seen = watched._ledger.clock() - slot.active
        # Nine hours later, past the server's own limit of eight.
        slot.active -= 9 * 3600
        assert slot.ended is not None
        slot.ended -= 9 * 3600
        await ending(use(engine))
        cause = "unknown" if stage.driver.name == "asyncpg" else "network"
        await use(engine)
        assert {(cause, "in_use"): 1} == moved(watched.snapshot().disconnects_total)
        fatal = watched.snapshot().shortest_fatal_inactivity_seconds
        assert fatal is not None
        assert SURVIVED / 2 < fatal <= seen


async def test_contradicted(stage: Stage) -> None:
    """What others survive was no limit of the path."""
    with Proxy(stage.server) as proxy:
        engine = stage.engine(port=proxy.port)
        (watched,) = stage.watches
        await stage.fill(engine, 1)
        # Longer than any that was survived while the connection was set up.
        await silence(proxy, SURVIVED)
        proxy.reset()
        await stage.hear()
        await ending(use(engine))
        fatal = watched.snapshot().shortest_fatal_inactivity_seconds
        assert fatal is not None
        await use(engine)
        # The proxy counts from a moment before the answer reaches us, which is long where the machine is busy.
        await silence(proxy, fatal + SURVIVED)
        await use(engine)
        assert None is watched.snapshot().shortest_fatal_inactivity_seconds


async def test_swallowed(stage: Stage) -> None:
    """Where nothing ever answers, the caller gives up: a cancelled statement says nothing of the connection."""
    with Proxy(stage.server, idle_limit=LIMIT, answers=False) as proxy:
        engine = stage.engine(port=proxy.port)
        (watched,) = stage.watches
        await stage.fill(engine, 1)
        await silence(proxy, LIMIT)
        task = asyncio.create_task(use(engine))
        await until(lambda: proxy.silence < LIMIT, "the statement")
        task.cancel()
        await ending(task)
        assert {} == moved(watched.snapshot().disconnects_total)
        assert None is watched.snapshot().shortest_fatal_inactivity_seconds


@pytest.mark.only("aiomysql", "asyncmy")
@pytest.mark.parametrize(("options", "phase"), [({}, "in_use"), ({"pool_pre_ping": True}, "pre_ping")])
async def test_goodbye_of_mysql_8(stage: Stage, options: dict[str, Any], phase: str) -> None:
    """The server's last word is believed, long before the limit that it told us.

    MySQL 8 cannot be had here: a proxy says what 8.0.24 and later send unasked, error 4031 with sequence number 0.
    """
    with Proxy(stage.server) as proxy:
        engine = stage.engine(port=proxy.port, **options)
        (watched,) = stage.watches
        await stage.fill(engine, 2)
        # No server says it sooner.
        await silence(proxy, 1.0)
        proxy.say(len(GOODBYE).to_bytes(3, "little") + b"\0" + GOODBYE)
        await stage.hear()
        assert 2 == watched.snapshot().connections["dead"]
        await ending(use(engine))
        await use(engine)
        assert {("inactivity", phase): 1} == moved(watched.snapshot().disconnects_total)
        assert None is watched.snapshot().shortest_fatal_inactivity_seconds
