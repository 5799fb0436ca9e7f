"""The alerts fire and stay silent as described, on made-up series, and no limit of theirs moves unnoticed."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from generate import HERE
from panels_support import promtool
from rules import ALERTS, Alert, render

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.tooling

ALERT_TESTS = sorted(HERE.glob("*.tests.yml"))
# What an alert on inactivity limits has to be tried with.
LIMITS = {"60", "350", "1800", "28800"}
verdict = re.compile(
    r"name: (?:Limit (\d+) s)?[^\n]*\n\s*alertname: (\w+), time: \w+,\s*exp:(\[\])?.*?got:(\[\])?", re.DOTALL
)
duration = re.compile(r"(\d+)([smhd])\b")
threshold = re.compile(r"(>=?) (\d+)")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def run_alert_tests(directory: Path, alerts: Sequence[Alert]) -> subprocess.CompletedProcess[str]:
    """Run the alerts' tests with *alerts* in place of the real ones."""
    (directory / "alerts.yml").write_text(render(alerts), encoding="utf-8")
    return promtool("test", "rules", *(shutil.copy(path, directory) for path in ALERT_TESTS))


def verdicts(directory: Path, expression: str) -> list[tuple[str, str, str, str]]:
    """Run the alerts' tests with *expression* in place of every alert's, and return what failed.

    Each as the limit, the alert, and ``[]`` for alerts that were not expected and that were not there.
    """
    answer = run_alert_tests(directory, [replace(alert, expr=expression, lasting="") for alert in ALERTS])
    assert 1 == answer.returncode
    return verdict.findall(answer.stdout + answer.stderr)


def required() -> set[tuple[str, str]]:
    """Return each limit and alert that has to be tried: the lengths of limits matter to the alert on them alone."""
    lost = {"SQLAlchemyPoolDeadConnections": {"1800", "28800"}, "SQLAlchemyPoolDisconnectErrors": {""}}
    return {(limit, alert.title) for alert in ALERTS for limit in lost.get(alert.title, LIMITS)}


def other_durations(text: str) -> Iterator[str]:
    """Yield *text* with one of its durations halved or doubled."""
    for found in duration.finditer(text):
        seconds = int(found[1]) * SECONDS[found[2]]
        for other in (seconds // 2, seconds * 2):
            yield f"{text[: found.start()]}{other}s{text[found.end() :]}"


def moved(alert: Alert) -> Iterator[tuple[str, Alert]]:
    """Yield what is changed into what, and *alert* with that change: each of its limits moved up and down.

    A window is changed wherever it stands; of a label's alternatives, each is left out.
    """
    for window in sorted(set(re.findall(r"\[.*?\]", alert.expr))):
        for other in other_durations(window):
            yield f"{window} to {other}", replace(alert, expr=alert.expr.replace(window, other))
    for values in sorted(set(re.findall(r'"\w+(?:\|\w+)+"', alert.expr))):
        parts = values.strip('"').split("|")
        for part in parts:
            fewer = f'"{"|".join(each for each in parts if each != part)}"'
            yield f"{values} to {fewer}", replace(alert, expr=alert.expr.replace(values, fewer))
    for found in threshold.finditer(alert.expr):
        sign, number = found[1], int(found[2])
        for other in (f"{sign} {number + 1}", f">= {number - (sign == '>=')}"):
            before, after = alert.expr[: found.start()], alert.expr[found.end() :]
            yield f"{found[0]} at {found.start()} to {other}", replace(alert, expr=f"{before}{other}{after}")
    for other in other_durations(alert.lasting):
        yield f"for {alert.lasting} to {other}", replace(alert, lasting=other)


MOVED = [
    pytest.param(place, altered, id=f"{altered.title} {what}")
    for place, alert in enumerate(ALERTS)
    for what, altered in moved(alert)
]


def test_prometheus_accepts_the_rules() -> None:
    """Protects Prometheus's start: it refuses to run with a rules file that it cannot read."""
    answer = promtool("check", "rules", HERE / "alerts.yml")
    assert 0 == answer.returncode, answer.stderr
    assert f"{len(ALERTS)} rules found" in answer.stdout


def test_the_alerts_fire_and_stay_silent_as_described() -> None:
    """Protects the limits of an alert by Prometheus's own evaluation of made-up series."""
    answer = promtool("test", "rules", *ALERT_TESTS)
    assert 0 == answer.returncode, answer.stdout + answer.stderr


def test_a_dead_alert_would_be_noticed(tmp_path: Path) -> None:
    """Protects the alerts' tests: for every alert and limit there is a moment at which it has to fire."""
    missed = {(limit, title) for limit, title, _, got in verdicts(tmp_path, "vector(0) > 1") if got}
    assert required() <= missed


def test_a_restless_alert_would_be_noticed(tmp_path: Path) -> None:
    """Protects the alerts' tests: for every alert and limit there is a moment at which it has to be silent."""
    false = {(limit, title) for limit, title, expected, _ in verdicts(tmp_path, "vector(1)") if expected}
    assert required() <= false


@pytest.mark.parametrize(("place", "altered"), MOVED)
def test_a_moved_limit_would_be_noticed(tmp_path: Path, place: int, altered: Alert) -> None:
    """Protects every limit of an alert: moved up or down, it fires or is silent where the tests do not expect it."""
    answer = run_alert_tests(tmp_path, [*ALERTS[:place], altered, *ALERTS[place + 1 :]])
    assert 1 == answer.returncode
    said = answer.stdout + answer.stderr
    assert "FAILED" in said
    assert "parse error" not in said
