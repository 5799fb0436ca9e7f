"""``python -m poolwatch.demo``: a watched application, its database and its users, until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from poolwatch.demo.servers import MariaDB, NotInstalledError, Prometheus, ServerError
from poolwatch.demo.status import HEADER, Metrics, line, scrape
from poolwatch.demo.terminal import LogTail, Stop, complain, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolwatch.demo.app import Application

WAIT_TIMEOUT = 20
_SCRAPE_SECONDS = 5
_LINE_SECONDS = 2.0
_LINES_PER_HEADER = 20

# There in a checkout only.
_DASHBOARDS = Path(__file__).resolve().parents[3] / "dashboards"


def main(arguments: Sequence[str], stop: Stop, log: LogTail) -> int:
    """Run the demonstration until *stop* is asked; return the exit status. Nothing it started outlives it.

    Returns:
        0 when it was asked to end, 1 when something failed to start or broke, 2 when something is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m poolwatch.demo",
        description="Runs an application with a small connection pool on a MariaDB that closes idle connections after"
        f" {WAIT_TIMEOUT} s, and prints what poolwatch's metrics say about it. Ctrl-C ends it and removes everything.",
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end by itself after so many seconds")
    seconds: float = parser.parse_args(arguments).seconds
    if find_spec("uvicorn") is None:
        complain("uvicorn is not installed: pip install 'poolwatch[demo]'")
        return 2
    try:
        with ExitStack() as running:
            _run(running, stop, log, seconds)
    except NotInstalledError as error:
        complain(str(error))
        return 2
    except ServerError as error:
        # Who asked for the end while something was starting knows why it did not start.
        if not stop.asked():
            complain(str(error))
            return 1
    say("Stopped: the servers have ended, their files are gone.", stop)
    return 0


def _run(running: ExitStack, stop: Stop, log: LogTail, seconds: float) -> None:
    from poolwatch.demo.app import Application  # noqa: PLC0415  # needs uvicorn, which only now is known to be there

    database = MariaDB(wait_timeout=WAIT_TIMEOUT)
    database.abort = stop.asked
    say("Starting a MariaDB of our own ...", stop)
    running.enter_context(database)
    application = running.enter_context(Application(database.url(), log=log.text))
    prometheus = _prometheus(running, stop, application)
    say(_introduction(application.url, prometheus), stop)
    _report(application, stop, time.monotonic() + seconds)
    say("Stopping ...", stop)


def _prometheus(running: ExitStack, stop: Stop, application: Application) -> str | None:
    """Start a Prometheus that scrapes *application* and return its address; ``None`` if it is not installed."""
    alerts = _DASHBOARDS / "alerts.yml"
    try:
        server = Prometheus(
            {"poolwatch-demo": application.url.removeprefix("http://")},
            interval=_SCRAPE_SECONDS,
            rules=(alerts,) if alerts.is_file() else (),
        )
    except NotInstalledError:
        return None
    server.abort = stop.asked
    return running.enter_context(server).url


def _introduction(application: str, prometheus: str | None) -> str:
    dashboard = _DASHBOARDS / "sqlalchemy-pool.json"
    file = dashboard if dashboard.is_file() else "dashboards/sqlalchemy-pool.json from poolwatch's repository"
    if prometheus is None:
        address = "none: apt-get install prometheus, then start this again (or let yours scrape the address above)"
        source = "your Prometheus"
    else:
        address = f"{prometheus} (scrapes every {_SCRAPE_SECONDS} s)"
        source = prometheus
    return f"""
  application  {application}
  metrics      {application}/metrics
  Prometheus   {address}
  Grafana      Connections > Data sources > Prometheus: {source}, scrape interval {_SCRAPE_SECONDS}s
               Dashboards > New > Import > upload {file}, choose that data source

The server closes a connection that is silent for {WAIT_TIMEOUT} s. The pool (5, and 5 more at need) has neither
pre-ping nor recycle, so after a long quiet spell the next user gets a dead connection, and an error. Below:
  wait         callers inside pool.connect()
  closes in    time until the server closes the first connection, unless it is used before
  at risk      connections with little of that time left: soon, a quarter at the most; now, a tenth
  user errors  requests answered with an error: the connection was dead, or none became free in time

Ctrl-C stops everything and leaves nothing behind.
"""


def _report(application: Application, stop: Stop, end: float) -> None:
    """Print a line every few seconds until *stop* is asked or the monotonic clock reads *end*."""
    number = 0
    following = time.monotonic()
    while not stop.asked() and time.monotonic() < end:
        application.check()
        if number % _LINES_PER_HEADER == 0:
            say(HEADER, stop)
        number += 1
        try:
            metrics = Metrics(scrape(f"{application.url}/metrics"))
        except OSError as error:
            msg = f"{application.url}/metrics did not answer: {error}"
            raise ServerError(msg) from error
        traffic = application.traffic
        say(line(metrics, now=time.time(), traffic=traffic.doing(), errors=traffic.errors), stop)
        following += _LINE_SECONDS
        stop.wait(min(following, end) - time.monotonic())


def _start() -> int:
    """Set up what belongs to the whole process, and run."""
    stop, log = Stop(), LogTail()
    stop.listen()
    log.install()
    return main(sys.argv[1:], stop, log)


if __name__ == "__main__":
    sys.exit(_start())
