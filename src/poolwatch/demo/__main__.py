"""``python -m poolwatch.demo``: a bare and a guarded pool, their database and their users, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from poolwatch.demo.servers import MariaDB, NotInstalledError, Prometheus, ServerError
from poolwatch.demo.status import HEADER, Metrics, line, news, scrape, standing, summary
from poolwatch.demo.terminal import LogTail, Stop, complain, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolwatch.demo.app import Application
    from poolwatch.demo.status import Standing

WAIT_TIMEOUT = 20
_SCRAPE_SECONDS = 5
_LINE_SECONDS = 2.0
_LINES_PER_HEADER = 20

# There in a checkout only.
_DASHBOARDS = Path(__file__).resolve().parents[3] / "dashboards"
_RULES = ("alerts.yml", "server.yml", "recording.yml")


def main(arguments: Sequence[str], stop: Stop, log: LogTail) -> int:
    """Run the demonstration until *stop* is asked; return the exit status. Nothing it started outlives it.

    Returns:
        0 when it was asked to end, 1 when something failed to start or broke, 2 when something is not installed.
    """
    given = _parser().parse_args(arguments)
    if find_spec("uvicorn") is None:
        complain("uvicorn is not installed: pip install 'poolwatch[demo]'")
        return 2
    try:
        with ExitStack() as running:
            _run(running, stop, log, given)
    except NotInstalledError as error:
        complain(str(error))
        return 2
    except ServerError as error:
        # Who asked for the end while something was starting knows why it did not start.
        if not stop.asked():
            complain(str(error))
            return 1
    say("Stopped: what it had started has ended, its files are gone.", stop)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m poolwatch.demo",
        description="Runs an application with two small connection pools, one of them guarded, on a MariaDB that closes"
        f" idle connections after {WAIT_TIMEOUT} s, and prints what poolwatch's metrics say about them. Ctrl-C ends it"
        " and removes everything.",
    )
    add = parser.add_argument
    add("--seconds", type=float, default=float("inf"), help="end by itself after so many seconds")
    add(
        "--database",
        metavar="URL",
        help="SQLAlchemy's URL of a database of yours, with an async driver; then no MariaDB and no Prometheus is"
        f" started. The users' quiet spells are made for a wait_timeout of {WAIT_TIMEOUT} s",
    )
    add("--listen", type=_address, default="127.0.0.1:0", metavar="HOST:PORT", help="where the application answers")
    return parser


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 1 << 16:
        msg = f"{text!r} is not HOST:PORT"
        raise argparse.ArgumentTypeError(msg)
    return host, int(port)


def _run(running: ExitStack, stop: Stop, log: LogTail, given: argparse.Namespace) -> None:
    from poolwatch.demo.app import Application  # noqa: PLC0415  # needs uvicorn, which only now is known to be there

    own = given.database is None
    database = _own_database(running, stop) if own else _answering(given.database)
    application = running.enter_context(Application(database, listen=given.listen, log=log.text))
    prometheus = _prometheus(running, stop, application) if own else None
    say(_introduction(application.url, prometheus, own=own), stop)
    _report(application, stop, time.monotonic() + given.seconds)
    say("Stopping ...", stop)


def _own_database(running: ExitStack, stop: Stop) -> str:
    """Start a MariaDB and return its URL."""
    database = MariaDB(wait_timeout=WAIT_TIMEOUT)
    database.abort = stop.asked
    say("Starting a MariaDB of our own ...", stop)
    return running.enter_context(database).url()


def _answering(database: str) -> str:
    """Return *database*, a URL; raises ServerError if nothing answers there."""
    from poolwatch.demo.app import ask  # noqa: PLC0415  # as above

    try:
        asyncio.run(ask(database))
    except Exception as error:
        # A driver's own, too: which one it is, the URL says.
        msg = f"the database cannot be used: {error!r}"
        raise ServerError(msg) from error
    return database


def _prometheus(running: ExitStack, stop: Stop, application: Application) -> Prometheus | None:
    """Start a Prometheus that scrapes *application* and return it; ``None`` if it is not installed."""
    try:
        server = Prometheus(
            {"poolwatch-demo": application.url.removeprefix("http://")},
            interval=_SCRAPE_SECONDS,
            rules=tuple(_DASHBOARDS / name for name in _RULES) if _DASHBOARDS.is_dir() else (),
        )
    except NotInstalledError:
        return None
    server.abort = stop.asked
    return running.enter_context(server)


def _introduction(application: str, prometheus: Prometheus | None, *, own: bool) -> str:
    dashboard = _DASHBOARDS / "sqlalchemy-pool.json"
    file = dashboard if dashboard.is_file() else "dashboards/sqlalchemy-pool.json from poolwatch's repository"
    source = "your Prometheus" if prometheus is None else prometheus.url
    alerts = f"{source}, with the rules of {', '.join(_RULES)}"
    if prometheus is not None:
        address = f"{source} (scrapes every {_SCRAPE_SECONDS} s)"
        if _DASHBOARDS.is_dir():
            alerts = prometheus.alerts()
    elif own:
        address = "none: apt-get install prometheus, then start this again (or let yours scrape the address above)"
    else:
        address = "none of its own: let yours scrape the address above"
    limit = f"for {WAIT_TIMEOUT} s" if own else "for its wait_timeout"
    return f"""
  application  {application}
  metrics      {application}/metrics
  Prometheus   {address}
  alerts       {alerts}
  Grafana      Connections > Data sources > Prometheus: {source}, scrape interval {_SCRAPE_SECONDS}s
               Dashboards > New > Import > upload {file}; its data source is chosen at the top

The server closes a connection that is silent {limit}. Two pools of one application get the same requests at
the same moments; now and then their users are quiet for longer than that.
  bare      watch(engine, name="bare"). After such a spell its next users get dead connections, and errors.
  guarded   watch(engine, name="guarded", guard=True). A checkout looks at the connection first, sends nothing for
            that, and replaces it if it is dead or nearly so: its users notice nothing.
Below:
  out idle dead  connections handed out; waiting in the pool; waiting there and closed by the server already
  next closes    when the server closes the next one, unless it is used before: time left, of the time it allows
  lost           users who got an error because their connection was dead: what the guard is about
  busy           users for whom none became free in time, in a rush that is too much for either pool
  replaced       connections opened in place of others, because of:
                 disconnect        a user's error showed that it was lost
                 pool_invalidated  it lay in the pool beside such a one
                 guard_dead        the guard saw that the server had closed it
                 guard_deadline    the guard saw that the server was about to

Ctrl-C stops everything and leaves nothing behind.
"""


def _report(application: Application, stop: Stop, end: float) -> None:
    """Print a line every few seconds until *stop* is asked or the monotonic clock reads *end*, then what came of it."""
    number = 0
    following = time.monotonic()
    before = _standings(application)
    while not stop.asked() and time.monotonic() < end:
        if number % _LINES_PER_HEADER == 0:
            say(HEADER, stop)
        number += 1
        after = _standings(application)
        say(line(after.values(), now=time.time(), traffic=application.traffic.doing()), stop)
        for name, pool in after.items():
            for each in news(name, before[name], pool):
                say(each, stop)
        before = after
        following += _LINE_SECONDS
        stop.wait(min(following, end) - time.monotonic())
    for name, pool in _standings(application).items():
        say(summary(name, pool), stop)


def _standings(application: Application) -> dict[str, Standing]:
    """Return how each pool stands now; raises ServerError if the application is no longer running."""
    application.check()
    try:
        metrics, now = Metrics(scrape(f"{application.url}/metrics")), time.time()
    except OSError as error:
        msg = f"{application.url}/metrics did not answer: {error}"
        raise ServerError(msg) from error
    return {name: standing(metrics, name, users, now=now) for name, users in application.traffic.tallies.items()}


def _start() -> int:
    """Set up what belongs to the whole process, and run."""
    stop, log = Stop(), LogTail()
    stop.listen()
    log.install()
    return main(sys.argv[1:], stop, log)


if __name__ == "__main__":
    sys.exit(_start())
