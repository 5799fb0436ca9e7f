"""The demonstration's own parts: what it is told, what it prints, and how it is ended."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

import pytest

from asgi import client
from poolwatch.demo import __main__ as demo
from poolwatch.demo import app, servers, status, traffic
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
    """Every figure is of its own pool and ends where its word in the header does, in 110 columns."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    families = [
        ("connections", ',state="checked_out"', 12, 112),
        ("connections", ',state="idle"', 10, 110),
        ("connections", ',state="condemned"', 3, 3),
        ("connections", ',state="dead"', 14, 114),
        ("next_deadline_timestamp_seconds", ',state="idle",protected="true"', inf, 1007),
        ("next_deadline_timestamp_seconds", ',state="idle",protected="false"', 1016, inf),
        ("inactivity_limit_seconds", ',source="wait_timeout"', 20, 600),
        ("reconnects_total", ',reason="disconnect"', 22, 0),
        ("reconnects_total", ',reason="guard_dead"', 0, 123),
        ("reconnects_total", ',reason="recycle"', 0, 0),
    ]
    text = "".join(
        f'sqlalchemy_pool_{name}{{pool="{pool}"{labels}}} {value}\n'
        for name, labels, *values in families
        for pool, value in zip(traffic.POOLS, values, strict=True)
    )
    tallies = (traffic.Tally(lost=17, busy=18), traffic.Tally(lost=117, busy=118))
    pools = [
        status.standing(status.Metrics(text), name, users, now=1000.0)
        for name, users in zip(traffic.POOLS, tallies, strict=True)
    ]
    line = status.line(pools, now=1000.0, traffic="quiet  9s")
    assert " ".join(line.split()) == ("00:16:40 quiet 9s | 12 13 14 16/20s 17 18 22 | 112 113 114 7/600s 117 118 123")
    *above, columns = status.HEADER.splitlines()
    assert max(map(len, (line, columns, *above))) <= 110
    words = [match.end() for match in re.finditer(r"\w+|\|", columns)][2:]
    assert words == [match.end() for match in re.finditer(r"\S+", line)][3:]
    assert [each.index("|") for each in (*above, columns)] == [line.index("|")] * 3
    hours = replace(pools[0], left=28700.0, limit=28800.0)
    assert " 8.0/8h " in status.line([hours], now=1000.0, traffic="requests")
    assert "  -  " in status.line([replace(hours, left=inf)], now=1000.0, traffic="requests")


def test_news_is_what_is_new() -> None:
    """It has the errors of lost connections with their text, and the replaced connections with their reasons."""
    nobody = traffic.Tally(lost=1, busy=1, error="2006 Gone")
    before = status.Standing(
        out=0, idle=5, dead=0, left=20.0, limit=20.0, users=nobody, replaced={"disconnect": 1, "guard_dead": 2}
    )
    assert status.news("bare", before, replace(before, out=1, users=replace(nobody, requests=9, busy=7))) == []
    met = replace(before, users=replace(nobody, lost=3, error="2013 Lost"), replaced={"disconnect": 2, "guard_dead": 2})
    told = [" " * 9 + "bare: 2 users got: 2013 Lost", " " * 9 + "bare: replaced: 1 disconnect"]
    assert status.news("bare", before, met) == told
    saved = replace(before, replaced={"disconnect": 1, "guard_dead": 5, "guard_deadline": 1})
    (line,) = status.news("guarded", before, saved)
    assert re.fullmatch(" {9}guarded: replaced before .*: 3 guard_dead, 1 guard_deadline", line)
    refused = replace(before, users=replace(nobody, other=1, error="no connection"))
    assert status.news("bare", before, refused) == [" " * 9 + "bare: 1 user got another error: no connection"]


def test_the_summary_tells_errors_apart() -> None:
    """Who lost a connection is not added to who found none free, and what the guard did is told."""
    pool = status.Standing(
        out=0,
        idle=5,
        dead=0,
        left=20.0,
        limit=20.0,
        users=traffic.Tally(requests=120, lost=3, busy=4),
        replaced={"disconnect": 5},
    )
    told = "  bare       120 requests: 3 lost their connection, 4 found none free; 5 connections replaced"
    assert status.summary("bare", pool) == told
    guarded = replace(pool, users=replace(pool.users, other=1), replaced={"guard_dead": 1})
    assert status.summary("guarded", guarded).endswith(
        "none free, 1 another error; 1 connection replaced, 1 by the guard"
    )


@pytest.mark.anyio
async def test_both_pools_get_the_same() -> None:
    """Protects the comparison: every request goes to both, and answers are counted by kind for the pool they are of."""
    asked: dict[str, list[str]] = {name: [] for name in traffic.POOLS}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, pool, what = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode().split("/", 2)
        asked[pool].append(what)
        code = (500, 503, 502, 200)[len(asked[pool]) % 4] if pool == "bare" else 200
        writer.write(f"HTTP/1.1 {code} X\r\nA: b\r\n\r\ntext {code}".encode())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        users = traffic.Traffic(*server.sockets[0].getsockname(), seed=1)
        await users._wave(12, slow=0.5)
    bare, guarded = (sorted(each) for each in asked.values())
    assert bare == guarded
    assert {each.partition("/")[0] for each in bare} == {"items", "report"}
    assert users.tallies["guarded"] == traffic.Tally(requests=12)
    assert replace(users.tallies["bare"], error="") == traffic.Tally(requests=12, lost=3, busy=3, other=3)
    assert users.tallies["bare"].error in {"text 500", "text 502"}


@pytest.mark.anyio
async def test_an_answer_names_nobody() -> None:
    """An error that is no lost connection has another status, and not the driver's text, which may name a user."""
    engines = app.make_engines(f"mysql+aiomysql://somebody:secret@127.0.0.1:{servers.free_port()}/app")
    async with client(app.make_app(engines)) as user:
        answers = [await user.get(f"/{name}/items/1") for name in traffic.POOLS]
    assert [each.status_code for each in answers] == [502, 502]
    assert {each.text for each in answers} == {"no connection, or a statement that failed"}


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
