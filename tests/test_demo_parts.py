"""The demonstration's own parts: what it is told, what it prints, and how it is ended."""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

from poolwatch.demo import __main__ as demo
from poolwatch.demo import servers, status
from poolwatch.demo.terminal import LogTail, Stop

if TYPE_CHECKING:
    from poolwatch.demo.servers import MariaDB

# As with the whole of it: what is shown is the newest versions' doing.
pytestmark = pytest.mark.tooling

_SECONDS = 60.0


def test_a_database_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """One line says why, without the password, and nothing is started."""
    url = f"mysql+aiomysql://app:secret@127.0.0.1:{servers.free_port()}/app"
    assert demo.main(["--database", url, "--seconds", "0"], Stop(), LogTail()) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch("poolwatch demo: the database cannot be used: OperationalError.*\\(2003, .*\n", output.err)
    assert "secret" not in output.err


def test_an_address_that_is_taken(mariadb: MariaDB, capsys: pytest.CaptureFixture[str]) -> None:
    """One line names it."""
    taken = f"127.0.0.1:{mariadb.port}"
    arguments = ["--database", mariadb.url(), "--listen", taken, "--seconds", "0"]
    assert demo.main(arguments, Stop(), LogTail()) == 1
    assert f"poolwatch demo: the application cannot listen at {taken}: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["8000", ":8000", "localhost:http", "localhost:65536"])
def test_what_is_no_address(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before anything starts."""
    with pytest.raises(SystemExit):
        demo.main(["--listen", text, "--seconds", "0"], Stop(), LogTail())
    assert f"{text!r} is not HOST:PORT" in capsys.readouterr().err


def test_a_line_stands_under_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure ends where its word in the header does, and a long line still fits 120 columns."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    text = "".join(
        f'sqlalchemy_pool_{name}{{pool="app"{labels}}} {value}\n'
        for name, labels, value in [
            ("pending_checkouts", "", 11),
            ("connections", ',state="checked_out"', 12),
            ("connections", ',state="idle"', 13),
            ("connections", ',state="dead"', 14),
            ("connections_limit", "", 15),
            ("next_deadline_timestamp_seconds", ',state="idle",protected="true"', 1007),
            ("next_deadline_timestamp_seconds", ',state="idle",protected="false"', 1016),
            ("inactivity_limit_seconds", ',source="wait_timeout"', 20),
            ("timeout_risk_connections", ',state="idle",risk="soon"', 17),
            ("timeout_risk_connections", ',state="idle",risk="imminent"', 10),
            ("timeout_risk_connections", ',state="idle",risk="expired"', 8),
            ("checkouts_total", "", 1900),
            ("checkout_failures_total", ',reason="timeout"', 20),
            ("reconnects_total", ',reason="disconnect"', 22),
            ("reconnects_total", ',reason="pool_invalidated"', 23),
            ("reconnects_total", ',reason="recycle"', 0),
        ]
    )
    line = status.line(status.Metrics(text), now=1000.0, traffic="quiet  9s", errors=21)
    assert " ".join(line.split()) == (
        "00:16:40 quiet 9s 11 12 13 14 15 16 of 20 s 17 18 1900 20 21 23 pool_invalidated, 22 disconnect"
    )
    assert len(line) <= 120
    columns = status.HEADER.splitlines()[-1]
    figures = {"wait": 11, "out": 12, "idle": 13, "dead": 14, "max": 15, "soon": 17, "now": 18, "failed": 20}
    for word, figure in (figures | {"done": 1900, "errors": 21}).items():
        assert line[: re.search(rf"\b{word}\b", columns).end()].endswith(f" {figure}")  # type: ignore[union-attr]


def test_a_signal_handler_may_ask_while_somebody_waits() -> None:
    """A wait ends when a signal asks, and a later one does not begin."""
    stop = Stop()
    before = signal.signal(signal.SIGALRM, stop.ask)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert stop.wait(_SECONDS)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert stop.wait(_SECONDS)
