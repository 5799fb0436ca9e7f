"""The dashboard and the alerts as files: current, importable, and asking only for what the library exports."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from dashboard import ALL_VALUES, UID
from generate import HERE, outputs, stale
from panels_support import DASHBOARD, PANELS, TARGETS, promtool
from poolwatch.catalog import CATALOG, PREFIX
from rules import ALERTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.tooling

# What Prometheus and its operators put on every series.
TARGET_LABELS = {"job", "instance", "cluster", "namespace"}
QUERIES = {panel: target["expr"] for panel, target in TARGETS.items()}
EXPRESSIONS = QUERIES | {alert.title: alert.expr for alert in ALERTS}
DRAWN = [panel for panel in PANELS if panel["type"] != "row"]

selector = re.compile(r"([a-z_]+)\{([^}]*)\}")
matcher = re.compile(r'([a-z_]+)(=~|!~|!=|=)"([^"]*)"')
grouping = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


def exported() -> dict[str, set[str]]:
    """Return the labels of every series name that the catalogue allows, optional families left out."""
    names: dict[str, set[str]] = {}
    for metric in CATALOG:
        labels = {"pool", *(label.name for label in metric.labels)} | TARGET_LABELS
        if metric.kind == "histogram":
            names |= {f"{metric.name}_{part}": labels for part in ("sum", "count")}
            names[f"{metric.name}_bucket"] = labels | {"le"}
        elif not metric.optional:
            names[metric.name] = labels
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


def test_generated_files_are_current() -> None:
    """Protects those who import the files from a dashboard that its source no longer describes."""
    wanted = outputs()
    assert {"sqlalchemy-pool.json", "alerts.yml"} <= {path.name for path in wanted}
    assert [] == stale(wanted)


def test_the_dashboard_imports_everywhere() -> None:
    """Protects the import by upload, by provisioning and by the API: nothing is asked for, nothing collides."""
    assert DASHBOARD["id"] is None
    assert UID == DASHBOARD["uid"] == "sqlalchemy-pool"
    assert 36 <= DASHBOARD["schemaVersion"] <= 42
    assert [] == DASHBOARD["__inputs"]
    assert "DS_PROMETHEUS" not in (HERE / "sqlalchemy-pool.json").read_text(encoding="utf-8")
    assert {panel["type"] for panel in DRAWN} == {
        each["id"] for each in DASHBOARD["__requires"] if each["type"] == "panel"
    }


def test_the_data_source_is_chosen_and_not_saved() -> None:
    """Protects Grafanas other than the author's: the data source comes first and everything follows it."""
    first, *others = DASHBOARD["templating"]["list"]
    assert ("datasource", "prometheus", "datasource") == (first["type"], first["query"], first["name"])
    assert ({}, [], "") == (first["current"], first["options"], first["regex"])
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    targets = [target for panel in DRAWN for target in panel["targets"]]
    assert [] == [each for each in (*others, *DRAWN, *targets) if chosen != each["datasource"]]


def test_variables_ask_for_labels_that_exist() -> None:
    """Protects the choices at the top from staying empty, and "All" from leaving out series without a label."""
    variables = DASHBOARD["templating"]["list"][1:]
    assert list(ALL_VALUES) == [variable["name"] for variable in variables]
    for variable in variables:
        name, matchers, label = re.fullmatch(r"label_values\((\w+)\{(.*)\}, (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
        assert variable["name"] == label
        assert {label, *(found[1] for found in matcher.finditer(matchers))} <= EXPORTED[name]
        assert variable["multi"]
        assert variable["includeAll"]
        assert (".+" if label in {"job", "instance", "pool"} else ".*") == variable["allValue"]


def test_panels_are_numbered_and_placed() -> None:
    """Protects the layout: Grafana moves panels that overlap and loses one of two with the same number."""
    numbers = [panel["id"] for panel in PANELS]
    assert sorted(set(numbers)) == numbers
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert cells
        assert not cells & taken
        assert all(0 <= x < 24 for x, _ in cells)
        taken |= cells


@pytest.mark.parametrize("panel", DRAWN, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    """Protects the reader: a question behind the (i), a unit on every number, one letter for each query."""
    assert panel["title"]
    assert panel["description"].rstrip().endswith((".", "?"))
    assert panel["fieldConfig"]["defaults"]["unit"]
    references = [target["refId"] for target in panel["targets"]]
    assert references
    assert sorted(set(references)) == references


def test_titles_are_unique() -> None:
    """Protects whoever refers to a panel by its title, as the tests with a real server do."""
    titles = [panel["title"] for panel in PANELS]
    assert sorted(set(titles)) == sorted(titles)
    assert all(titles)


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_a_query_asks_for_what_is_exported(expression: str) -> None:
    """Protects panels and alerts from names, labels and label values that no series has: they would stay empty."""
    found = selector.findall(expression)
    assert [name for name, _ in found] == re.findall(rf"\b{PREFIX}\w+", expression)
    assert found
    for name, matchers in found:
        parts = matcher.findall(matchers)
        assert ", ".join(f'{label}{sign}"{value}"' for label, sign, value in parts) == matchers
        assert {label for label, _, _ in parts} <= EXPORTED[name]
        for label, _, value in parts:
            assert set(value.split("|")) <= VALUES.get((name, label), {*value.split("|")})


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_a_query_groups_by_labels_that_exist(expression: str) -> None:
    """Protects sums and joins from a label that nothing inside them has: Prometheus takes it without complaint."""
    for label, part in grouped(expression):
        assert label in set().union(*(EXPORTED[name] for name, _ in selector.findall(part))), part


@pytest.mark.parametrize("expression", QUERIES.values(), ids=QUERIES)
def test_a_panel_follows_the_variables(expression: str) -> None:
    """Protects the choice at the top of the dashboard: a selector without it would show other people's pools."""
    for _, matchers in selector.findall(expression):
        chosen = {label: value for label, sign, value in matcher.findall(matchers) if sign == "=~"}
        assert {f"${label}" for label in ALL_VALUES} <= set(chosen.values())
        assert [] == [label for label in ALL_VALUES if chosen[label] != f"${label}"]


@pytest.mark.parametrize("expression", QUERIES.values(), ids=QUERIES)
def test_rates_follow_the_scrape_interval(expression: str) -> None:
    """Protects graphs of any width: a fixed window is empty for slow scrapes and misses events of fast ones."""
    windows = re.findall(r"\[([^\]]*)\]", expression)
    # The time shown is as wide as the reader wants it.
    functions = {"rate": "$__rate_interval", "increase": "$__range"}
    assert [functions[found] for found in re.findall(r"\b(rate|increase)\(", expression)] == windows
    assert not re.search(r"\b(irate|delta|idelta|deriv)\(", expression)
    counters = {metric.name for metric in CATALOG if metric.kind == "counter"}
    for found in selector.finditer(expression):
        rated = expression[: found.start()].endswith(("rate(", "increase("))
        assert (found[1] in counters or found[1].endswith(("_bucket", "_sum", "_count"))) == rated


def test_what_one_process_survived_is_no_hidden_limit_of_another(tmp_path: Path) -> None:
    """Protects the table of limits where a pool runs in several processes: they are on the same path to the server."""
    silences = (("shortest_fatal", 350, 350), ("longest_survived", 200, 400))
    series = [
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
    tests = [{"interval": "1m", "input_series": series, "promql_expr_test": [asked]}]
    path = tmp_path / "limits.tests.yml"
    # JSON is YAML.
    path.write_text(json.dumps({"tests": tests}), encoding="utf-8")
    answer = promtool("test", "rules", path)
    assert 0 == answer.returncode, answer.stdout + answer.stderr
