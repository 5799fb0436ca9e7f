"""What panels, rules and alerts ask for exists; and every family that exists is asked for, or there is a reason."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from generator import rules
from generator.dashboard import build
from generator.options import DEFAULT, Options
from generator.promql import SERVER_NAME, Promql
from generator.rules.model import Record
from panels_support import DASHBOARD, PANELS, TARGETS, panels_of, promtool
from poolwatch.catalog import CATALOG, PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.tooling

# What Prometheus and its operators put on every series.
TARGET_LABELS = {"job", "instance", "cluster", "namespace"}
QUERIES = {panel: target["expr"] for panel, target in TARGETS.items()}
MARKS = {mark["name"]: mark["expr"] for mark in DASHBOARD["annotations"]["list"] if "expr" in mark}
RULES = [
    rule
    for group in (*rules.alerting(DEFAULT), *rules.serving(DEFAULT), *rules.recorded(DEFAULT))
    for rule in group.rules
]
RECORDED = {
    f"{panel['title']} {target['refId']} recorded": target["expr"]
    for panel in panels_of(json.loads(json.dumps(build(Options(recorded=True)))))
    for target in panel.get("targets", ())
}
RULED = {f"{rule.title} {place}": rule.expr for place, rule in enumerate(RULES)}
PANELLED = QUERIES | MARKS | RECORDED
EXPRESSIONS = PANELLED | RULED
# Families that it takes an argument to have: nothing but the row that names it may ask for them.
ARGUMENTS = ("per_connection=True", "route_details=True")
# Families that neither the dashboard nor a rule asks for, and why.
UNASKED: dict[str, str] = {}

series = re.compile(rf"(?<![\w:])((?:[a-z_]+:)?{PREFIX}\w+(?::\w+)?)(?:\{{([^}}]*)\}})?")
matcher = re.compile(r'([a-z_]+)(=~|!~|!=|=)"([^"]*)"')
grouping = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


def exported() -> dict[str, set[str]]:
    """Return the labels of every series that the library exports, and of those that the rules record."""
    names: dict[str, set[str]] = {}
    for metric in CATALOG:
        labels = {"pool", *(label.name for label in metric.labels)} | TARGET_LABELS
        if metric.kind == "histogram":
            names |= {f"{metric.name}_{part}": labels for part in ("sum", "count")}
            names[f"{metric.name}_bucket"] = labels | {"le"}
        else:
            names[metric.name] = labels
    for rule in RULES:
        if isinstance(rule, Record):
            kept = re.search(r"by \(([^)]*)\)", rule.expr)
            names[rule.title] = set(kept[1].split(", ")) if kept else set(DEFAULT.labels) | {"job", "pool"}
    # The process and its server.
    names[SERVER_NAME] = {*DEFAULT.process, "server"}
    return names


EXPORTED = exported()
# Only labels whose values are known beforehand.
VALUES = {(metric.name, label.name): set(label.values) for metric in CATALOG for label in metric.labels if label.values}


def grouped(expression: str) -> Iterator[tuple[str, str]]:
    """Yield each label that is grouped or joined by, and the part of *expression* that has to have it."""
    for found in grouping.finditer(expression):
        part = expression
        if found[1] in {"by", "without"}:
            depth = 0
            for end in range(expression.index("(", found.end()), len(expression)):
                depth += {"(": 1, ")": -1}.get(expression[end], 0)
                if not depth:
                    part = expression[found.end() : end + 1]
                    break
        for label in re.findall(r"\w+", found[2]):
            yield label, part


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_an_expression_asks_for_what_is_exported(expression: str) -> None:
    """Protects panels and rules from names, labels and label values that no series has: they would stay empty."""
    found = series.findall(expression)
    assert found
    assert len(found) == len(re.findall(rf"{PREFIX}\w+", expression))
    for name, matchers in found:
        parts = matcher.findall(matchers)
        assert ", ".join(f'{label}{sign}"{value}"' for label, sign, value in parts) == matchers
        assert {label for label, _, _ in parts} <= EXPORTED[name]
        for label, _, value in parts:
            if not value.startswith("$"):
                assert set(value.split("|")) <= VALUES.get((name, label), {*value.split("|")})


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_an_expression_groups_by_labels_that_exist(expression: str) -> None:
    """Protects sums and joins from a label that nothing inside them has: Prometheus takes it without complaint."""
    for label, part in grouped(expression):
        assert label in set().union(*(EXPORTED[name] for name, _ in series.findall(part))), part


@pytest.mark.parametrize("expression", PANELLED.values(), ids=PANELLED)
def test_a_panel_follows_the_variables(expression: str) -> None:
    """Protects the choice at the top of the dashboard: a selector without it would show other people's pools."""
    variables = Promql(DEFAULT).variables
    for name, matchers in series.findall(expression):
        chosen = {label: value for label, sign, value in matcher.findall(matchers) if sign == "=~"}
        wanted = [label for label in variables if label in EXPORTED[name]]
        assert {label: f"${label}" for label in wanted} == {label: chosen[label] for label in wanted}
    known = {*variables, "detail", "datasource", "__rate_interval", "__range", "__range_s"}
    assert set(re.findall(r"\$([a-z_]\w*)", expression)) <= known


@pytest.mark.parametrize("expression", QUERIES.values(), ids=QUERIES)
def test_rates_follow_the_scrape_interval(expression: str) -> None:
    """Protects graphs of any width: a fixed window is empty for slow scrapes and misses events of fast ones."""
    windows = {
        "rate": "$__rate_interval",
        # The time shown is as wide as the reader wants it.
        "increase": "$__range",
        "max_over_time": "$__range",
    }
    unquoted = re.sub(r'"[^"]*"', "", expression)
    asked = re.findall(r"\b(\w+)\([^()\[]*\[([^\]]*)\]", unquoted)
    assert len(asked) == unquoted.count("[")
    assert [(function, windows[function]) for function, _ in asked] == asked
    assert not re.search(r"\b(irate|delta|idelta|deriv)\(", expression)


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_counters_are_rated_and_gauges_are_not(expression: str) -> None:
    """Protects from a total since the process began, and from a rate of something that goes up and down."""
    counters = {metric.name for metric in CATALOG if metric.kind == "counter"}
    for found in series.finditer(expression):
        if ":" not in found[1]:
            rated = expression[: found.start()].endswith(("rate(", "increase(", "changes(", "resets("))
            assert (found[1] in counters or found[1].endswith(("_bucket", "_sum", "_count"))) == rated, found[1]


@pytest.mark.parametrize("panel", [panel for panel in PANELS if panel["type"] != "row"], ids=lambda x: x["title"])
def test_lines_are_ranked_once(panel: dict[str, list[dict[str, str]]]) -> None:
    """Protects graphs of a fleet: ranked at each step, ten lines become a hundred that come and go."""
    for target in panel["targets"]:
        if target["range"]:
            assert bool(re.search(r"\b(topk|bottomk)\(", target["expr"])) == ("@ end()" in target["expr"])


def test_every_family_is_asked_for() -> None:
    """Protects the catalogue from what nobody looks at: a family is on the dashboard or in a rule, or says why not."""
    asked = {name for expression in EXPRESSIONS.values() for name, _ in series.findall(expression)}
    parts = ("", "_bucket", "_sum", "_count")
    unasked = {metric.field for metric in CATALOG if not {f"{metric.name}{part}" for part in parts} & asked}
    assert UNASKED.keys() == unasked
    assert all(UNASKED.values())


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_optional_families_are_asked_for_in_their_own_row_alone(argument: str) -> None:
    """Protects teams that do not pay for more series: no other panel and no rule depends on them."""
    optional = {metric.name for metric in CATALOG if metric.optional == argument}
    (row,) = (panel for panel in PANELS if panel["title"].endswith(f"(only with {argument})"))
    own = {f"{panel['title']} {target['refId']}" for panel in row["panels"] for target in panel["targets"]}
    asking = {
        place
        for place, expression in EXPRESSIONS.items()
        if optional & {name for name, _ in series.findall(expression)}
    }
    assert asking
    assert asking <= own | {f"{place} recorded" for place in own}


def test_every_optional_family_has_its_row() -> None:
    """Protects who turns something on, and looks for it."""
    assert {"", *ARGUMENTS} == {metric.optional for metric in CATALOG}


def test_what_one_process_survived_is_no_hidden_limit_of_another(tmp_path: Path) -> None:
    """Protects the table of limits where a pool runs in several processes: they are on the same path to the server."""
    silences = (("shortest_fatal", 350, 350), ("longest_survived", 200, 400))
    given = [
        {
            "series": f'{PREFIX}{name}_inactivity_seconds{{job="api", instance="{x}", pool="{pool}"}}',
            "values": f"{value}",
        }
        for name, one, other in silences
        for pool, x, value in (("cut", "a", one), ("refuted", "a", one), ("refuted", "b", other))
    ]
    query = re.sub(r'[a-z]+=~"\$[a-z]+",? ?', "", QUERIES["Silence survived, and fatal C"])
    expected = [{"labels": '{job="api", pool="cut"}', "value": 350}]
    asked = {"expr": query, "eval_time": "0m", "exp_samples": expected}
    tests = [{"interval": "1m", "input_series": given, "promql_expr_test": [asked]}]
    path = tmp_path / "limits.tests.yml"
    # JSON is YAML.
    path.write_text(json.dumps({"tests": tests}), encoding="utf-8")
    answer = promtool("test", "rules", path)
    assert 0 == answer.returncode, answer.stdout + answer.stderr
