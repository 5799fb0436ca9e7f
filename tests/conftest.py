"""A real MariaDB for the whole run, and engines that are disposed of."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from garbage import set_aside
from poolwatch.demo.servers import MariaDB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


def pytest_collection_finish() -> None:
    """Set all modules aside, which are most of what lives."""
    set_aside()


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio: the drivers know no other loop interface."""
    return "asyncio"


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """Start the suite's own MariaDB; a machine without one fails."""
    with MariaDB(max_connections=200) as server:
        yield server


@pytest.fixture
def registry() -> CollectorRegistry:
    """Return a registry of the test's own."""
    return CollectorRegistry()


@pytest.fixture
async def make_engine(mariadb: MariaDB) -> AsyncIterator[Callable[..., AsyncEngine]]:
    """Return a function that makes async engines on the suite's MariaDB; they are disposed of afterwards."""
    engines: list[AsyncEngine] = []

    def make(**options: Any) -> AsyncEngine:
        engines.append(create_async_engine(mariadb.url(), **options))
        return engines[-1]

    yield make
    for engine in engines:
        await engine.dispose()
    engines.clear()
    gc.collect()


@pytest.fixture
def engine() -> AsyncEngine:
    """Return an engine that is never connected."""
    return create_async_engine("mysql+aiomysql://app:secret@127.0.0.1:1/shop")
