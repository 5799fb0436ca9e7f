"""Watched pools of every driver on every event loop and on none, plain and with TLS."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

from databases import DRIVERS, Driver
from poolwatch import drivers, watch
from support import moved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy import Engine

    from poolwatch import Watch
    from tls import TlsMariaDB, TlsPostgreSQL

    TlsServer: TypeAlias = TlsMariaDB | TlsPostgreSQL


@dataclass(frozen=True)
class Variant:
    """A way to speak to a database.

    Attributes:
        driver: With which driver, on which event loop.
        tls: With TLS, or plain.
        sync: From an ordinary engine, on no event loop.
    """

    driver: Driver
    tls: bool
    sync: bool

    def __str__(self) -> str:
        name = f"{self.driver.name}-sync" if self.sync else str(self.driver)
        return f"{name}-{'tls' if self.tls else 'plain'}"


VARIANTS = [
    Variant(driver, tls, sync)
    for sync, those in (
        (False, DRIVERS),
        (True, [Driver("pymysql", "mariadb"), Driver("psycopg", "postgresql")]),
    )
    for driver in those
    for tls in (False, True)
]


# What the first test run has in another version than the second.
OLDER = set(re.findall(r"^(\w+)", (Path(__file__).parents[1] / "constraints-oldest.txt").read_text(), re.MULTILINE))


def once(driver: Driver) -> list[pytest.MarkDecorator]:
    """Return the mark of a test that says nothing new of *driver* on the oldest dependencies.

    Its version is the same there, and so is uvloop's: what the one makes of the other is known from the newest ones,
    and what SQLAlchemy's version makes of the driver from asyncio.
    """
    return [pytest.mark.once] if driver.uvloop and driver.name not in OLDER else []


def on_each(variants: Iterable[Variant]) -> pytest.MarkDecorator:
    """Repeat a test for each of *variants*, on its event loop."""
    cases = [
        pytest.param(each, ("asyncio", {"use_uvloop": each.driver.uvloop}), id=str(each), marks=once(each.driver))
        for each in variants
    ]
    return pytest.mark.parametrize(("variant", "anyio_backend"), cases)


class WatchedPool:
    """A watched pool of one variant. What is called with :meth:`call` uses it the same with every driver.

    Args:
        variant: Which.
        server: Where to.
        ports: Where the first connections go instead, in this order.
        watching: What ``watch()`` is told; ``None`` for a pool that is not watched.
        options: The engine's.

    Attributes:
        variant: Which it is of.
        engine: The engine, of an async one the part that is sync.
        adapter: What is known of its driver.
        port: Where all other connections go.
    """

    def __init__(
        self,
        variant: Variant,
        server: TlsServer,
        *ports: int,
        watching: Mapping[str, Any] | None,
        **options: Any,
    ) -> None:
        self.variant = variant
        name = variant.driver.name
        args = server.certificate.connect_args(name, tls=variant.tls)
        make: Callable[..., AsyncEngine | Engine] = create_engine if variant.sync else create_async_engine
        self._own = make(server.url(name), connect_args=args, **options)
        self.engine = self._own.sync_engine if isinstance(self._own, AsyncEngine) else self._own
        self.adapter = drivers.driver_of(self.engine.dialect)
        self._own_id = server.own_id
        self._ports = [*ports]
        self.port = server.port
        event.listen(self.engine, "do_connect", self._divert)
        self._watched = None if watching is None else watch(self._own, **watching)

    def _divert(self, _dialect: object, _record: object, _args: object, options: dict[str, Any]) -> None:
        # Always: some versions of SQLAlchemy would keep the one before.
        options["port"] = self._ports.pop(0) if self._ports else self.port

    @property
    def is_watched(self) -> bool:
        """Whether there is a watch."""
        return self._watched is not None

    @property
    def watched(self) -> Watch:
        """The watch."""
        assert self._watched is not None
        return self._watched

    async def call(self, work: Callable[..., Any], *args: Any) -> Any:
        """Call *work*, within which an async driver waits as a sync one does."""
        return await greenlet_spawn(work, *args)

    async def fill(self, *statements: str) -> list[int]:
        """Leave a connection idle in the pool for each of *statements*, which it has run; return their ids."""
        return await greenlet_spawn(self._fill, statements)

    def _fill(self, statements: Sequence[str]) -> list[int]:
        held = [self.engine.connect() for _ in statements]
        ids = []
        for connection, statement in zip(held, statements, strict=True):
            connection.execute(text(statement))
            ids.append(connection.scalar(text(self._own_id)))
            connection.commit()
            connection.close()
        return ids

    def use(self) -> None:
        """Check a connection out, run a statement, give the connection back."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def states(self) -> dict[str, int]:
        """Read the pool; return how many connections are in each state that any is in."""
        snapshot = self.watched.snapshot()
        assert snapshot.internal_errors_total == 0
        return moved(snapshot.connections)

    async def close(self) -> None:
        """Dispose of the engine and end the watch."""
        await greenlet_spawn(self.engine.dispose)
        if self._watched is not None:
            self._watched.close()
