"""The demonstration: what it shows, and that nothing of it stays, however it ends."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from prometheus_client.parser import text_string_to_metric_families

from poolwatch.catalog import CATALOG
from poolwatch.demo import __main__ as demo
from poolwatch.demo import app, servers, status
from poolwatch.demo.servers import poll
from poolwatch.demo.terminal import LogTail, Stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolwatch.demo.servers import MariaDB

# What is shown is the newest versions' doing.
pytestmark = pytest.mark.tooling

_SECONDS = 60.0

# The same in a tenth of the time.
_QUICK = """
import sys
from poolwatch.demo import __main__ as demo, traffic
demo.WAIT_TIMEOUT = 2
demo._LINE_SECONDS = 0.1
traffic._LULLS = ((2.5, 2.5),)
# No longer than the server waits.
traffic._HOLD = (0.2, 0.8)
sys.exit(demo._start())
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty directory where temporary ones are made; short, because a socket's path must be."""
    # That one is not to be made in this one.
    assert tmp_path.exists()
    with tempfile.TemporaryDirectory(prefix="pw") as path:
        monkeypatch.setenv("TMPDIR", path)
        # Where the output is buffered, as it is without this, flushing is ours.
        monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", path)
        yield Path(path)


class Run:
    """The demonstration as a process of its own, whose output, stderr included, goes to *output*.

    Args:
        output: The file.
        arguments: Instead of the module, for the interpreter.
    """

    def __init__(self, output: Path, *arguments: str) -> None:
        self._output = output
        # That a signal is ignored, as this one is under nohup, a child would inherit; a handler it does not.
        before = signal.signal(signal.SIGHUP, lambda *_: None)
        try:
            with output.open("wb") as file:
                self.process = subprocess.Popen(
                    [sys.executable, *(arguments or ("-m", "poolwatch.demo"))], stdout=file, stderr=subprocess.STDOUT
                )
        finally:
            signal.signal(signal.SIGHUP, before)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(_SECONDS)

    def text(self) -> str:
        """Return what it has printed so far."""
        return self._output.read_text()

    def await_match(self, pattern: str) -> re.Match[str]:
        """Return the first match of *pattern* in its output; fails when it ends, or takes too long, without."""
        deadline = time.monotonic() + _SECONDS
        while True:
            alive = self.process.poll() is None
            found = re.search(pattern, self.text(), re.MULTILINE)
            if found is not None:
                return found
            assert alive, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.02)


def leftovers(directory: Path) -> list[str]:
    """Return the files below *directory* and the command lines that name it."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{directory}/" in command:
            commands.append(command)
    return [*map(str, directory.iterdir()), *commands]


def written_rules() -> list[str]:
    """Return the name of every rule of the repository's rules files."""
    dashboards = Path(__file__).resolve().parent.parent / "dashboards"
    texts = [(dashboards / name).read_text() for name in ("alerts.yml", "server.yml", "recording.yml")]
    return re.findall(r"^ +- (?:alert|record): (\S+)$", "\n".join(texts), re.MULTILINE)


def test_it_shows_a_watched_application_until_ctrl_c_is_pressed_twice(scratch: Path, tmp_path: Path) -> None:
    """The printed addresses answer with every family and every rule, and the second Ctrl-C breaks no cleaning up."""
    with Run(tmp_path / "output") as run:
        url = run.await_match(r"^ +metrics +(http://127\.0\.0\.1:\d+/metrics)$")[1]
        prometheus = run.await_match(r"^ +Prometheus +(http://127\.0\.0\.1:\d+) ")[1]
        run.await_match(r"^\d\d:\d\d:\d\d .* \d+/20s ")
        families = {family.name for family in text_string_to_metric_families(status.scrape(url))}
        wanted = {metric.name.removesuffix("_total") for metric in CATALOG if not metric.optional}
        # Nobody has met a dead connection yet.
        assert families >= wanted - {"sqlalchemy_pool_shortest_fatal_inactivity_seconds"}
        assert status.scrape(run.await_match(rf"^ +alerts +({prometheus}/\S+)$")[1])
        groups = json.loads(status.scrape(f"{prometheus}/api/v1/rules"))["data"]["groups"]
        assert sorted(rule["name"] for group in groups for rule in group["rules"]) == sorted(written_rules())
        query = f"{prometheus}/api/v1/query?query=sqlalchemy_pool_checkouts_total"
        assert poll(lambda: '"value"' in status.scrape(query))
        assert len(leftovers(scratch)) == 4
        run.process.send_signal(signal.SIGINT)
        run.await_match("^Stopping")
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(_SECONDS) == 0
        assert run.text().endswith("files are gone.\n")
        assert "Traceback" not in run.text()
    assert leftovers(scratch) == []


@pytest.mark.parametrize("wished", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["^Starting", r"^\d\d:\d\d:\d\d "])
def test_a_signal_leaves_nothing(scratch: Path, tmp_path: Path, wished: signal.Signals, moment: str) -> None:
    """While the servers start as well as later, a signal ends everything in order."""
    with Run(tmp_path / "output") as run:
        run.await_match(moment)
        run.process.send_signal(wished)
        assert run.process.wait(_SECONDS) == 0
        assert "Traceback" not in run.text()
        assert ("metrics" in run.text()) == (moment != "^Starting")
    assert leftovers(scratch) == []


def test_a_reader_that_goes_away_ends_it(scratch: Path) -> None:
    """When nobody reads its output any more it ends without complaint, as after `| head`."""
    command = [sys.executable, "-m", "poolwatch.demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(_SECONDS) == 0
        assert process.stderr.read() == b""
    assert leftovers(scratch) == []


def test_the_story_is_told(scratch: Path, tmp_path: Path) -> None:
    """After a lull a user of the bare pool gets an error, none of the guarded one's, and nothing but lines is shown."""
    with Run(tmp_path / "output", "-c", _QUICK) as run:
        # Dead on both sides, and what came of it.
        dead = r"quiet +\d+s \| +0 +0 +[1-9] +- .*\| +0 +0 +[1-9] +- "
        run.await_match(dead + r"[\s\S]*? bare: [1-9]\d* users? got: 2013 Lost connection to MySQL server during query")
        run.await_match(dead + r"[\s\S]*? guarded: replaced before a user met them, .* [1-9]\d* guard_dead")
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(_SECONDS) == 0
        header, *lines, bare, guarded, _, _ = run.text()[run.text().index(status.HEADER) :].splitlines()[2:]
        assert header == status.HEADER.splitlines()[-1]
        known = r"\d\d:\d\d:\d\d |    time users| +\| BARE -| +\|   connections| +bare: | +guarded: "
        assert [each for each in lines if not re.match(known, each)] == []
        # In the end.
        pattern = r"  (\w+) +(\d+) requests: (\d+) lost .*; \d+ connections replaced(?:, (\d+) by the guard)?"
        figures = [re.fullmatch(pattern, each) for each in (bare, guarded)]
        (name, requests, lost, by_guard), other = [each.groups() for each in figures if each]
        assert (name, int(lost) > 0, by_guard) == ("bare", True, None)
        assert other[:3] == ("guarded", requests, "0")
        assert int(other[3]) > 0
    assert leftovers(scratch) == []


def test_a_database_of_yours(mariadb: MariaDB, scratch: Path, tmp_path: Path) -> None:
    """On a given database it starts no server, shows that one's limit at the given address, and hangs up at the end."""
    before = set(mariadb.connections())
    port = servers.free_port()
    arguments = ("--database", mariadb.url(), "--listen", f"0.0.0.0:{port}")
    with Run(tmp_path / "output", "-m", "poolwatch.demo", *arguments) as run:
        run.await_match(rf"^ +metrics +http://127\.0\.0\.1:{port}/metrics$")
        run.await_match("^ +Prometheus +none of its own: ")
        run.await_match(r"^\d\d:\d\d:\d\d .* 8\.0/8h ")
        # Reached only by who listens everywhere.
        assert f'server="127.0.0.1:{mariadb.port}"' in status.scrape(f"http://127.0.0.2:{port}/metrics")
        assert set(mariadb.connections()) - before
        assert leftovers(scratch) == []
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(_SECONDS) == 0
    assert "Traceback" not in run.text()
    assert poll(lambda: set(mariadb.connections()) <= before)


def test_missing_mariadb(scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without MariaDB's programs, one line names the packages to install."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert demo.main([], Stop(), LogTail()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        "poolwatch demo: mariadb-install-db is not installed;"
        " on Debian: apt-get install mariadb-server-core mariadb-client-core\n"
    )
    assert leftovers(scratch) == []


def test_missing_uvicorn(scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without uvicorn, one line names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert demo.main([], Stop(), LogTail()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "poolwatch demo: uvicorn is not installed: pip install 'poolwatch[demo]'\n"
    assert leftovers(scratch) == []


def test_missing_prometheus(scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without Prometheus the rest runs, and the introduction says how to get it; it ends by itself when told to."""
    find = servers.find

    def find_others(program: str, package: str) -> str:
        return find("no-such-program" if program == "prometheus" else program, package)

    monkeypatch.setattr(servers, "find", find_others)
    assert demo.main(["--seconds", "0.5"], Stop(), LogTail()) == 0
    assert re.search("Prometheus   none: apt-get install prometheus", capsys.readouterr().out)
    assert leftovers(scratch) == []


def test_a_database_that_does_not_start(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the server and shows what its log says."""
    monkeypatch.setattr(demo, "WAIT_TIMEOUT", "nonsense")
    assert demo.main([], Stop(), LogTail()) == 1
    assert re.match(r"poolwatch demo: mariadb did not start; .*\n(.*\n)*.*nonsense", capsys.readouterr().err)
    assert leftovers(scratch) == []


def test_an_application_that_does_not_start(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the application and its error, and the database that was up already goes."""

    def broken(_engines: object) -> None:
        msg = "as the test wants it"
        raise OSError(msg)

    monkeypatch.setattr(app, "make_app", broken)
    assert demo.main([], Stop(), LogTail()) == 1
    assert re.match(r"poolwatch demo: the application failed: .*as the test wants it", capsys.readouterr().err)
    assert leftovers(scratch) == []
