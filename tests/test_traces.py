"""Where in the code a connection was checked out that was not given back: the application's frames, and no others."""

from __future__ import annotations

import asyncio
import linecache
import re
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from starlette.concurrency import run_in_threadpool

from poolwatch import hotpath, watch
from support import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prometheus_client import CollectorRegistry

    from leaving import Stage

pytest_plugins = ["leaving"]
pytestmark = pytest.mark.anyio

FRAME = re.compile(r"([\w.<>]+) \(([^()]+):(\d+)\)")


def frames(line: str) -> list[str]:
    """Return the functions that *line* names, innermost first; that one stands where it checks out."""
    found = FRAME.findall(line)
    assert "engine.connect()" in linecache.getline(found[0][1], int(found[0][2]))
    return [name for name, _, _ in found]


async def in_a_request(stage: Stage, work: Callable[[], Awaitable[object]]) -> list[str]:
    """Return the functions that are named when *work* leaves a connection out."""
    stage.traces = True
    await stage.request(work)
    await stage.judged()
    (line,) = stage.lines()
    assert line.endswith("; give connections back in the request that takes them")
    return frames(line)


async def test_async(stage: Stage) -> None:
    """The coroutines that wait for it are named, across SQLAlchemy's greenlet, as far as our middleware."""

    async def repository() -> None:
        await stage.take()

    found = await in_a_request(stage, repository)
    assert [
        "Stage.take",
        "test_async.<locals>.repository",
        "Stage.request.<locals>.page",
    ] == found


async def test_in_a_task(stage: Stage) -> None:
    """A task's stack ends with the task."""

    async def child() -> None:
        await asyncio.create_task(stage.take())

    assert ["Stage.take"] == await in_a_request(stage, child)


async def test_in_a_thread(stage: Stage, registry: CollectorRegistry) -> None:
    """As in a sync endpoint."""
    engine = create_engine("sqlite://")
    watched = watch(engine, name="orders of a thread", registry=registry)
    held: list[Any] = []

    def in_thread() -> None:
        held.append(engine.connect())

    async def work() -> None:
        await run_in_threadpool(in_thread)

    stage.traces = True
    await stage.request(work)
    await until(lambda: not watched._ledger.endings, "a judgement")
    (line,) = stage.lines()
    assert ["test_in_a_thread.<locals>.in_thread"] == frames(line)
    held.pop().close()


async def test_short(stage: Stage) -> None:
    """The innermost callers are named; a deep stack does not make a long line."""

    async def deep(more: int) -> None:
        await (deep(more - 1) if more else stage.take())

    found = await in_a_request(stage, lambda: deep(20))
    assert ["Stage.take", *["test_short.<locals>.deep"] * 5] == found


async def test_only_if_asked_for(stage: Stage) -> None:
    """Without the option no stack is told, not that of an earlier checkout of the same connection's either."""
    assert await in_a_request(stage, stage.take)
    await stage.give_back()
    await stage.count()
    stage.lines()
    stage.watched._ledger.lines.clear()
    stage.traces = False
    await stage.request(stage.take)
    await stage.judged()
    (line,) = stage.lines()
    assert not FRAME.search(line)


async def test_odd_code(stage: Stage) -> None:
    """Code that names its module by no text is told like any other, and no file's name makes two lines of one."""
    scope = {"__name__": object(), "stage": stage}
    # As templates are made into code, under names that their authors choose.
    exec(compile("async def take():\n await stage.take()", "caf\u00e9\n\x1b[31m\udcff.html", "exec"), scope)  # noqa: S102
    work: Any = scope["take"]
    stage.traces = True
    await stage.request(work)
    await stage.judged()
    (line,) = stage.lines()
    assert " < take (caf\u00e9\\n\\x1b[31m\\udcff.html:2) < " in line
    assert 0 == stage.watched.snapshot().internal_errors_total


async def test_unreadable(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack that cannot be read is none, not that of who had the connection before; the request goes on."""

    def fail() -> None:
        raise ZeroDivisionError

    await in_a_request(stage, stage.take)
    await stage.give_back()
    await stage.count()
    stage.lines()
    stage.watched._ledger.lines.clear()
    monkeypatch.setattr(hotpath, "here", fail)
    assert 200 == (await stage.request(stage.take)).status_code
    await stage.judged()
    (line,) = stage.lines()
    assert not FRAME.search(line)
    assert 1 == stage.watched.snapshot().internal_errors_total
