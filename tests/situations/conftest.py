"""Every test of this directory runs on each driver and event loop that it makes sense on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

pytest.register_assert_rewrite("stage", "support")

from databases import DRIVERS, PostgreSQL, TestedMariaDB  # noqa: E402
from stage import Stage  # noqa: E402
from variants import once  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from prometheus_client import CollectorRegistry

    from databases import Database, Driver


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat a test for every driver and event loop, less those that its marks rule out or leave to the newest."""
    if "driver" in metafunc.fixturenames:
        only, never = _named("only", metafunc), _named("never", metafunc)
        drivers = [each for each in DRIVERS if not each.names & never and (not only or each.names & only)]
        alike = metafunc.definition.get_closest_marker("alike") is not None
        cases = [pytest.param(each, marks=once(each) if alike else []) for each in drivers]
        metafunc.parametrize("driver", cases, ids=str)


def _named(kind: str, metafunc: pytest.Metafunc) -> set[str]:
    return {name for mark in metafunc.definition.iter_markers(kind) for name in mark.args}


@pytest.fixture
def anyio_backend(driver: Driver) -> tuple[str, dict[str, Any]]:
    """Run each test on its driver's event loop."""
    return "asyncio", {"use_uvloop": driver.uvloop}


@pytest.fixture(scope="session")
def own_mariadb() -> Iterator[Database]:
    """Start a MariaDB that tests may stop, freeze and set up as they like."""
    with TestedMariaDB(max_connections=200, innodb_fast_shutdown=2) as server:
        yield server


@pytest.fixture(scope="session")
def own_postgresql() -> Iterator[Database]:
    """Start a PostgreSQL; a machine without one fails."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture
async def stage(
    driver: Driver, request: pytest.FixtureRequest, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Stage]:
    """Return a stage on *driver*, cleared afterwards."""
    # A record of an error that was captured would keep the connection that it is about.
    caplog.set_level(logging.CRITICAL + 1, "sqlalchemy.pool")
    built = Stage(request.getfixturevalue(f"own_{driver.database}"), driver, registry)
    yield built
    await built.close()
