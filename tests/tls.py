"""Servers that speak TLS beside plain text, and what each driver must be told to use the one or the other.

A pytest plugin: modules that need its fixtures name it.
"""

from __future__ import annotations

import logging
import os
import shutil
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from databases import PostgreSQL, TestedMariaDB
from variants import WatchedPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

    from prometheus_client import CollectorRegistry

    from variants import TlsServer, Variant


class Certificate:
    """A certificate for 127.0.0.1, and the authority that drivers are to trust for it.

    Args:
        directory: Where its files are put.
        user: Who may read the key.

    Attributes:
        authority: The file of the authority's own certificate.
        chain: The server's file.
        key: Its key.
    """

    def __init__(self, directory: Path, user: str | int) -> None:
        self.authority, self.chain, self.key = (directory / f"{name}.pem" for name in ("authority", "chain", "key"))
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(self.authority)
        issued.cert_chain_pems[0].write_to_path(self.chain)
        # PostgreSQL takes no key that others may read.
        self.key.touch(0o600)
        issued.private_key_pem.write_to_path(self.key)
        for each in (self.chain, self.key):
            shutil.chown(each, user)

    def connect_args(self, driver: str, *, tls: bool) -> dict[str, Any]:
        """Return what makes *driver* insist on TLS and on this certificate, or use none."""
        if driver == "psycopg":
            return {"sslmode": "verify-full", "sslrootcert": self.authority} if tls else {"sslmode": "disable"}
        if tls:
            return {"ssl": ssl.create_default_context(cafile=self.authority)}
        # These two take what the server offers unless told not to.
        return {"pymysql": {"ssl_disabled": True}, "asyncpg": {"ssl": False}}.get(driver, {})


class TlsMariaDB(TestedMariaDB):
    """A MariaDB with a certificate.

    Attributes:
        cipher: The statement whose last column says whether the connection uses TLS.
        impatience: The statement after which the server drops the connection as soon as it is inactive.
    """

    cipher = "SHOW STATUS LIKE 'Ssl_cipher'"
    impatience = "SET SESSION wait_timeout = 1"

    def __init__(self) -> None:
        super().__init__(max_connections=200, innodb_fast_shutdown=2, userstat=1)
        self.certificate = Certificate(self.directory, os.geteuid())

    def command(self) -> list[str]:
        """Return the server's command line."""
        return [*super().command(), f"--ssl-cert={self.certificate.chain}", f"--ssl-key={self.certificate.key}"]

    def heard(self) -> list[tuple[Any, ...]]:
        """Return how many bytes the user ``app`` has sent, pings included."""
        return self.query("SELECT bytes_received FROM information_schema.user_statistics WHERE user = 'app'")


class TlsPostgreSQL(PostgreSQL):
    """A PostgreSQL with a certificate.

    Attributes:
        cipher: The statement whose last column says whether the connection uses TLS.
        impatience: The statement after which the server drops the connection as soon as it is inactive.
    """

    cipher = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    impatience = "SET idle_session_timeout = '50ms'"

    def __init__(self) -> None:
        super().__init__()
        self.certificate = Certificate(self.directory, self.user)

    def command(self) -> list[str]:
        """Return the server's command line."""
        settings = ("ssl=on", f"ssl_cert_file={self.certificate.chain}", f"ssl_key_file={self.certificate.key}")
        return [*super().command(), *(argument for each in settings for argument in ("-c", each))]

    def heard(self) -> list[tuple[Any, ...]]:
        """Return when each connection of the user ``app`` last began or ended anything, an empty statement too."""
        return self.query("SELECT pid, state_change FROM pg_stat_activity WHERE usename = 'app' ORDER BY pid")


@pytest.fixture(scope="session")
def tls_mariadb() -> Iterator[TlsMariaDB]:
    """Start a MariaDB that tests may stop, if they start it again."""
    with TlsMariaDB() as server:
        yield server


@pytest.fixture(scope="session")
def tls_postgresql() -> Iterator[TlsPostgreSQL]:
    """Start a PostgreSQL that tests may stop, if they start it again."""
    with TlsPostgreSQL() as server:
        yield server


@pytest.fixture
def server(variant: Variant, request: pytest.FixtureRequest) -> TlsServer:
    """Return the server that the test's driver speaks to."""
    found: TlsServer = request.getfixturevalue(f"tls_{variant.driver.database}")
    return found


@pytest.fixture
async def make_pool(
    variant: Variant, server: TlsServer, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Callable[..., WatchedPool]]:
    """Return a function that makes watched pools of the test's variant; they are disposed of afterwards.

    Its argument *watching* holds what ``watch()`` is told besides.
    """
    # A record of an error that was captured would keep the connection that it is about.
    caplog.set_level(logging.CRITICAL + 1, "sqlalchemy.pool")
    pools: list[WatchedPool] = []

    def make(*ports: int, watching: Mapping[str, Any] | None = None, **options: Any) -> WatchedPool:
        told = {"registry": registry, **(watching or {})}
        pools.append(WatchedPool(variant, server, *ports, watching=told, **options))
        return pools[-1]

    yield make
    for each in pools:
        await each.close()
