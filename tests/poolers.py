"""Poolers between drivers and a server, which answer many clients with few of its sessions."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import psycopg

from poolwatch.demo.servers import Server, find

if TYPE_CHECKING:
    from databases import PostgreSQL


class PgBouncer(Server):
    """Debian's PgBouncer before *server*, in transaction mode: a session is a client's for one transaction at a time.

    Args:
        server: Where to.
        sessions: How many there are for all clients.
    """

    def __init__(self, server: PostgreSQL, *, sessions: int) -> None:
        self._program = find("pgbouncer", "pgbouncer")
        super().__init__("pgbouncer")
        self._server = server
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": self.directory / "users",
            "pool_mode": "transaction",
            "default_pool_size": sessions,
            "query_wait_timeout": 10,
        }
        lines = ["[databases]", f"app = host={server.directory} port={server.port} dbname=app", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        (self.directory / "ini").write_text("\n".join(lines) + "\n")
        (self.directory / "users").write_text('"app" "app"\n')
        # It refuses to run as root, as PostgreSQL does.
        shutil.chown(self.directory, server.user)

    def command(self) -> list[str]:
        """Return the command line."""
        return [*self._server._become(), self._program, str(self.directory / "ini")]

    def ready(self) -> bool:
        """Tell whether it answers."""
        try:
            psycopg.connect(f"host=127.0.0.1 port={self.port} user=app dbname=app").close()
        except psycopg.OperationalError:
            return False
        return True
