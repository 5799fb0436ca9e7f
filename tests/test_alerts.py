"""The alerts fire and stay silent as described, on made-up series, and no limit of theirs moves unnoticed."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from generate import HERE
from generator import rules
from generator.options import DEFAULT
from generator.promql import LOCAL
from generator.rules.model import Alert
from mutants import FILES, RULES, TESTS, concerned, mutants, run, survivors, title
from panels_support import promtool

if TYPE_CHECKING:
    from pathlib import Path

    from generator.rules.model import Group, Rule

pytestmark = pytest.mark.tooling

ALERTS = [rule for rule in RULES if isinstance(rule, Alert)]
# Inactivity limits, each with its own scenes: what an alert on them has to be tried with.
LIMITS = {
    "SQLAlchemyPoolConnectionsNearServerTimeout": {"60", "350", "1800", "28800"},
    "SQLAlchemyPoolDeadConnections": {"1800", "28800"},
}
# Mutants that no series can tell from the rule.
ALIKE = {
    # Both find every sample, the second one twice.
    "SQLAlchemyPoolConnectionsUnreturned": ["[15m:1m] to [15m:30s]"],
    # Losses by inactivity would fire there as well, but have done so before "or".
    "SQLAlchemyPoolDisconnectErrors": ['cause!="inactivity" to cause=~".*"'],
    # The first two give a server another name after its own, and the first counts; of the addresses that the others
    # let through, ::1 has no dot, and 127 is never without.
    "instance_pool:sqlalchemy_pool_server:info": [
        'namespace="" to namespace=~".*"',
        'server!~".*[.].*" to server=~".*"',
        f'server!~"{LOCAL}" to server!~"{LOCAL.replace(".?::1(.?:.*)?|", "")}"',
        f'server!~"unknown|{LOCAL}" to server!~"unknown|{LOCAL.replace("127[.].*|", "")}"',
    ],
}
verdict = re.compile(
    r"name: (?:Limit (?P<limit>\d+) s)?[^\n]*\n\s*alertname: (?P<name>\w+), time: \w+,"
    r"\s*exp:(?P<expected>\[\])?.*?got:(?P<got>\[\])?",
    re.DOTALL,
)


def failed(directory: Path, alert: Alert, expression: str, side: str) -> set[str]:
    """Return the limits of *alert* at which its tests, with *expression* in place of its own, find one side empty.

    That is ``expected``, of alerts that are there, or ``got``, of alerts that are not. Once every limit is among them,
    the rest of the tests are left out.
    """
    altered, limits = replace(alert, expr=expression, lasting=""), LIMITS.get(alert.title, {""})
    found: set[str] = set()
    for path in concerned(alert):
        said = run(directory, path, alert, altered)[1]
        found |= {each["limit"] or "" for each in verdict.finditer(said) if each["name"] == alert.title and each[side]}
        if limits <= found:
            break
    return found & limits


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    # promtool would spend a third of its time on collecting the little garbage that it makes.
    monkeypatch.setenv("GOGC", "400")


@pytest.mark.parametrize(("name", "groups"), [*FILES.items(), ("recording.yml", rules.recorded(DEFAULT))])
def test_prometheus_accepts_the_rules(name: str, groups: tuple[Group, ...]) -> None:
    """Protects Prometheus's start: it refuses to run with a rules file that it cannot read."""
    answer = promtool("check", "rules", HERE / name)
    assert 0 == answer.returncode, answer.stderr
    assert f"{sum(len(group.rules) for group in groups)} rules found" in answer.stdout


def test_the_alerts_fire_and_stay_silent_as_described() -> None:
    """Protects the limits of an alert by Prometheus's own evaluation of made-up series."""
    answer = promtool("test", "rules", *TESTS)
    assert 0 == answer.returncode, answer.stdout + answer.stderr


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_the_tests_need_no_other_rules_than_they_name(tmp_path: Path, path: Path) -> None:
    """Protects the tests below, which run each file with these alone: it fails there for the moved limit only."""
    status, said = run(tmp_path, path)
    assert 0 == status, said


@pytest.mark.parametrize("alert", ALERTS, ids=title)
def test_a_dead_alert_would_be_noticed(tmp_path: Path, alert: Alert) -> None:
    """Protects the alerts' tests: for every alert and limit there is a moment at which it has to fire."""
    assert LIMITS.get(alert.title, {""}) == failed(tmp_path, alert, "vector(0) > 1", "got")


@pytest.mark.parametrize("alert", ALERTS, ids=title)
def test_a_restless_alert_would_be_noticed(tmp_path: Path, alert: Alert) -> None:
    """Protects the alerts' tests: for every alert and limit there is a moment at which it has to be silent."""
    assert LIMITS.get(alert.title, {""}) == failed(tmp_path, alert, "vector(1)", "expected")


@pytest.mark.parametrize("rule", [rule for rule in RULES if any(mutants(rule))], ids=title)
def test_a_moved_limit_would_be_noticed(tmp_path: Path, rule: Rule) -> None:
    """Protects every limit of a rule: moved up or down, an alert fires or is silent where no test expects it."""
    assert ALIKE.get(title(rule), []) == survivors(tmp_path, rule)
