"""Throw-away servers on loopback, from Debian's packages: a MariaDB, a Prometheus."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pymysql  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0


# What is on this machine is not asked for through a proxy.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(RuntimeError):
    """A server could not be found or did not start; the message says what to install or how its log ends."""


class NotInstalledError(ServerError):
    """A server's program is not on this machine; the message names the Debian package."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def find(program: str, package: str) -> str:
    """Return the path of *program*; raises NotInstalledError naming Debian's *package* if it is not installed."""
    path = shutil.which(program, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/bin") or shutil.which(program)
    if path is None:
        msg = f"{program} is not installed; on Debian: apt-get install {package}"
        raise NotInstalledError(msg)
    return path


class Server:
    """A child process with a directory of its own; leaving the ``with`` block ends both.

    Attributes:
        abort: Asked while the server starts; once it is true, the start is given up.
    """

    abort: Callable[[], bool] | None = None

    def __init__(self, kind: str) -> None:
        self.kind = kind
        # Short: a Unix socket's path may have 107 characters.
        self.directory = Path(tempfile.mkdtemp(prefix=f"poolwatch-{kind}-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def log(self) -> Path:
        """The file that holds what the server says."""
        return self.directory / "log"

    def command(self) -> list[str]:
        """Return the command line that starts the server."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Tell whether the server answers."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server and return when it answers; raises ServerError if it does not, or is to be given up."""
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches us alone, and we end it in order.
            self._process = subprocess.Popen(  # noqa: S603
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self.ready():
            if self.abort is not None and self.abort():
                msg = f"the start of {self.kind} was given up"
                raise ServerError(msg)
            if self._process.poll() is not None or time.monotonic() > deadline:
                msg = f"{self.kind} did not start; its log ends:\n{self.log.read_text(errors='replace')[-2000:]}"
                raise ServerError(msg)
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server and wait for it; one that is not running is left alone."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process else None


class MariaDB(Server):
    """A MariaDB with an empty database ``app`` and a user ``app`` with the password ``app``.

    Args:
        options: System variables, with underscores as in SQL, for the command line.
    """

    def __init__(self, **options: object) -> None:
        self._install = find("mariadb-install-db", "mariadb-server-core mariadb-client-core")
        self._server = find("mariadbd", "mariadb-server-core mariadb-client-core")
        self._options = options
        super().__init__("mariadb")
        self._socket = self.directory / "socket"

    def command(self) -> list[str]:
        """Install the system tables where they are missing; return the server's command line."""
        # Its own directory for temporary files too: two installations at once would take each other's.
        common = ["--no-defaults", f"--datadir={self.directory / 'data'}", f"--tmpdir={self.directory}"]
        if os.geteuid() == 0:
            # It refuses to run as root unless told to.
            common.append("--user=root")
        if not (self.directory / "data").exists():
            arguments = [self._install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
            # In a session of its own for the same reason as the server.
            made = subprocess.run(  # noqa: S603
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                start_new_session=True,
            )
            if made.returncode:
                msg = f"mariadb-install-db failed; it said:\n{made.stdout.decode(errors='replace')[-2000:]}"
                raise ServerError(msg)
        options = [f"--{key.replace('_', '-')}={value}" for key, value in self._options.items()]
        return [
            self._server,
            *common,
            f"--socket={self._socket}",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--skip-name-resolve",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=32M",
            *options,
        ]

    def ready(self) -> bool:
        """Tell whether it answers; the user and the database are there then."""
        # PyMySQL leaves a socket open that could not be connected.
        if not self._socket.exists():
            return False
        try:
            self.query("CREATE DATABASE IF NOT EXISTS app")
            for host in ("localhost", "127.0.0.1"):
                self.query(f"CREATE USER IF NOT EXISTS app@'{host}' IDENTIFIED BY 'app'")
                self.query(f"GRANT ALL ON app.* TO app@'{host}'")
        except pymysql.err.OperationalError:
            return False
        return True

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Run *statement* as root, on a connection of its own."""
        # A TLS context would cost more than all the rest.
        connection = pymysql.connect(unix_socket=str(self._socket), user="root", autocommit=True, ssl_disabled=True)
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def url(self, driver: str = "aiomysql") -> str:
        """Return SQLAlchemy's URL for the user ``app``."""
        return f"mysql+{driver}://app:app@127.0.0.1:{self.port}/app"

    def connections(self) -> list[int]:
        """Return the ids of the user ``app``'s connections, as the server's process list has them."""
        return [row[0] for row in self.query("SELECT id FROM information_schema.processlist WHERE user = 'app'")]

    def kill(self, connection_id: int) -> None:
        """Kill a connection and return when the server has closed it."""
        self.query(f"KILL {connection_id}")
        while connection_id in self.connections():
            time.sleep(0.005)


class Prometheus(Server):
    """A Prometheus that scrapes *targets* (``host:port``, by job) every *interval* seconds.

    Args:
        targets: What to scrape, by the value of the label ``job``.
        interval: Seconds between scrapes, and between evaluations of rules.
        rules: Files of rules to load.
    """

    def __init__(self, targets: Mapping[str, str], *, interval: int = 1, rules: tuple[Path, ...] = ()) -> None:
        self._server = find("prometheus", "prometheus")
        super().__init__("prometheus")
        config = {
            "global": {"scrape_interval": f"{interval}s", "evaluation_interval": f"{interval}s"},
            "rule_files": [str(path.resolve()) for path in rules],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()
            ],
        }
        # JSON is YAML.
        (self.directory / "prometheus.yml").write_text(json.dumps(config))

    @property
    def url(self) -> str:
        """Where its page and its API are."""
        return f"http://127.0.0.1:{self.port}"

    def alerts(self) -> str:
        """Return where its page of alerts is: Debian builds it without the new pages."""
        try:
            _direct.open(f"{self.url}/alerts", timeout=5).close()
        except urllib.error.HTTPError:
            return f"{self.url}/classic/alerts"
        return f"{self.url}/alerts"

    def command(self) -> list[str]:
        """Return the command line."""
        return [
            self._server,
            f"--config.file={self.directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def ready(self) -> bool:
        """Tell whether it answers."""
        try:
            with _direct.open(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)  # noqa: PLR2004
        except OSError:
            return False

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate *expression* now; return each series' labels and value. Raises ValueError with its complaint."""
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            with _direct.open(url) as answer:
                data = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode()) from error
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(row["metric"], float(row["value"][1])) for row in data["result"]]


def poll(condition: Callable[[], bool], *, seconds: float = 30.0) -> bool:
    """Ask *condition* until it is true; return false when *seconds* have passed without."""
    return any(condition() for _ in _ticks(seconds))


def _ticks(seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.05)
