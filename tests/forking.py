"""A process that forks with connections open, run by the tests of forks; prints what became of them as JSON."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import uvloop
from prometheus_client import REGISTRY, generate_latest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolwatch import watch
from support import assert_books, moved

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from poolwatch import Watch

IDLE = 20
# A child that hangs is killed, and its parent sees that it was.
CHILD_SECONDS = 20


def tell(**facts: object) -> None:
    """Print *facts* as one line; a child has the parent's standard output."""
    os.write(1, (json.dumps(facts) + "\n").encode())


def books(watched: Watch | None) -> dict[str, object]:
    """Return what the books say, once they are found true."""
    if watched is None:
        return {}
    snapshot = watched.snapshot()
    assert_books(snapshot)
    return {
        "connects": snapshot.connects_total,
        "checkouts": snapshot.checkouts_total,
        "connections": moved(snapshot.connections),
        "closes": moved(snapshot.closes_total),
        "series": generate_latest(REGISTRY).count(b"sqlalchemy_pool_connections{"),
    }


def fork(work: Callable[[], None], *, leave: str) -> int:
    """Do *work* in a child and return how the child ended; *leave* is how it does."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(CHILD_SECONDS)
    code = 0
    try:
        work()
        gc.collect()
    except BaseException as error:  # noqa: BLE001
        tell(child=f"{type(error).__name__}: {error}")
        code = 1
    if leave == "exit":
        sys.exit(code)
    os._exit(code)


async def ask(connection: AsyncConnection, patience: float) -> str | None:
    """Return the name of the error that a statement meets, if it meets one within *patience* seconds."""
    try:
        async with asyncio.timeout(patience):
            assert (await connection.execute(text("SELECT 2"))).scalar() == 2
    except Exception as error:  # noqa: BLE001
        return type(error).__name__
    return None


async def use(engine: AsyncEngine) -> None:
    """Use one connection of *engine*."""
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))


async def parent(engine: AsyncEngine, options: argparse.Namespace, run: Callable[[Any], None]) -> None:
    """Fork with :data:`IDLE` connections idle and one held, then use all of them."""
    watched = watch(engine) if options.watched else None
    held = [await engine.connect() for _ in range(IDLE + 1)]
    for each in held:
        await each.execute(text("SELECT 1"))
        await each.commit()
    for each in held[1:]:
        await each.close()
    del held[1:]

    def child() -> None:
        if options.child == "dispose":
            engine.sync_engine.dispose(close=False)
        if options.child != "untouched":
            try:
                run(asyncio.wait_for(use(engine), options.patience))
            except Exception as error:
                if options.child == "dispose":
                    raise
                tell(met=type(error).__name__)
        held.clear()
        gc.collect()
        tell(child=books(watched))

    code = fork(child, leave=options.leave)
    held += [await engine.connect() for _ in range(IDLE)]
    lost = await asyncio.gather(*(ask(each, options.patience) for each in held))
    tell(code=code, lost=[error for error in lost if error])
    if not any(lost):
        for each in held:
            await each.close()
        tell(parent=books(watched))
    os._exit(0)


def sync_parent(engine: Engine, options: argparse.Namespace) -> None:
    """As :func:`parent`, with a driver that blocks."""
    watched = watch(engine)
    held: list[Connection] = [engine.connect() for _ in range(IDLE + 1)]
    for each in held:
        each.execute(text("SELECT 1"))
        each.commit()
    for each in held[1:]:
        each.close()
    del held[1:]

    def child() -> None:
        if options.child == "dispose":
            engine.dispose(close=False)
        if options.child != "untouched":
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        tell(child=books(watched))

    code = fork(child, leave=options.leave)
    held += [engine.connect() for _ in range(IDLE)]
    for each in held:
        each.execute(text("SELECT 2"))
        each.close()
    tell(code=code, lost=[], parent=books(watched))


def workers(engine: Engine) -> None:
    """Watch in a master, while one of its threads reads for ever; two workers begin anew and work."""
    watched = watch(engine)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    locks = (watched._reader._lock, watched._ledger._lock)
    taken, over = threading.Event(), threading.Event()

    def read() -> None:
        with locks[0], locks[1]:
            taken.set()
            over.wait()

    def work() -> None:
        engine.dispose(close=False)
        for _ in range(2):
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        tell(child=books(watched))

    reader = threading.Thread(target=read)
    reader.start()
    taken.wait()
    codes = [fork(work, leave="_exit") for _ in range(2)]
    over.set()
    reader.join()
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    tell(codes=codes, parent=books(watched))


def main() -> None:
    """Do what the command line says."""
    logging.disable()
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--child", choices=("dispose", "untouched", "use", "workers"), default="dispose")
    parser.add_argument("--leave", choices=("_exit", "exit"), default="_exit")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--patience", type=float, default=5.0)
    parser.add_argument("--unwatched", dest="watched", action="store_false")
    options = parser.parse_args()
    run: Callable[[Any], Any] = asyncio.run if options.loop == "asyncio" else uvloop.run
    if make_url(options.url).get_dialect().is_async:
        run(parent(create_async_engine(options.url, pool_size=IDLE + 1), options, run))
    elif options.child == "workers":
        workers(create_engine(options.url, connect_args={"ssl_disabled": True}))
    else:
        engine = create_engine(options.url, pool_size=IDLE + 1, connect_args={"ssl_disabled": True})
        sync_parent(engine, options)


if __name__ == "__main__":
    main()
