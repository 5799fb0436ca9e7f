"""Healthy connections are never taken for dead, with any driver, plain or with TLS."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from variants import VARIANTS, on_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from variants import WatchedPool

pytest_plugins = ["tls"]

pytestmark = pytest.mark.once

CHECKOUTS = 10_000


def check_out(pool: WatchedPool) -> Counter[bool | None]:
    """Take connections and give them back, every tenth after a statement; return what was said of them meanwhile."""
    is_dead, answers = pool.adapter.is_dead, Counter[bool | None]()
    for turn in range(CHECKOUTS):
        fairy = pool.engine.raw_connection()
        connection = fairy.driver_connection
        answers[is_dead(connection)] += 1
        if turn % 10 == 0:
            cursor = fairy.cursor()
            cursor.execute("SELECT 1")
            cursor.fetchall()
            cursor.close()
        fairy.close()
        answers[is_dead(connection)] += 1
    return answers


@pytest.mark.anyio
@on_each(VARIANTS)
async def test_healthy(make_pool: Callable[..., WatchedPool]) -> None:
    """Neither at a checkout nor after a return, 10,000 times over three connections in turn."""
    pool = make_pool()
    await pool.fill("SELECT 1", "SELECT 1", "SELECT 1")
    assert {False: 2 * CHECKOUTS} == await pool.call(check_out, pool)
    assert {"idle": 3} == pool.states()
    assert 3 == pool.watched.snapshot().connects_total
