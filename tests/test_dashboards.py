"""The dashboard as a file: current, importable everywhere, readable, and every query of it proved on a real server."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import test_panels
import test_panels_fleet
import test_panels_limits
import test_panels_losses
import test_panels_use
from generate import HERE, files, main, outputs, stale
from generator.dashboard import build
from generator.model import Panel, Query, Row, layout
from generator.options import DEFAULT, UID, Options
from panels_support import DASHBOARD, PANELS, TARGETS, declared

pytestmark = pytest.mark.tooling

DRAWN = [panel for panel in PANELS if panel["type"] != "row"]
VARIABLES: list[dict[str, Any]] = DASHBOARD["templating"]["list"]
PROOFS = (test_panels, test_panels_fleet, test_panels_limits, test_panels_losses, test_panels_use)
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def test_every_query_is_proved() -> None:
    """Protects panels to come: one that no test asks on a real server fails here."""
    assert TARGETS.keys() == set().union(*map(declared, PROOFS))


def test_generated_files_are_current() -> None:
    """Protects those who import the files from a dashboard that its source no longer describes."""
    assert {"sqlalchemy-pool.json", "alerts.yml", "server.yml", "recording.yml"} <= {path.name for path in outputs()}
    assert [] == stale(outputs())


def test_the_dashboard_imports_everywhere() -> None:
    """Protects the import by upload, by provisioning and by the API: nothing is asked for, nothing collides."""
    assert DASHBOARD["id"] is None
    assert UID == DASHBOARD["uid"] == "sqlalchemy-pool"
    assert 36 <= DASHBOARD["schemaVersion"] <= 42
    assert [] == DASHBOARD["__inputs"]
    assert {} == DASHBOARD["__elements"]
    assert not DASHBOARD.keys() & {"apiVersion", "kind", "spec", "elements"}
    assert "DS_PROMETHEUS" not in json.dumps(DASHBOARD)
    assert {panel["type"] for panel in DRAWN} == {
        each["id"] for each in DASHBOARD["__requires"] if each["type"] == "panel"
    }
    assert not {panel["type"] for panel in DRAWN} & {"graph", "singlestat", "table-old"}
    assert DASHBOARD["editable"] is False


def test_the_data_source_is_chosen_and_not_saved() -> None:
    """Protects Grafanas other than the author's: the data source comes first and everything follows it."""
    first, *others = VARIABLES
    assert ("datasource", "prometheus", "datasource") == (first["type"], first["query"], first["name"])
    assert "Data source" == first["label"]
    assert ({}, [], "") == (first["current"], first["options"], first["regex"])
    targets = [target for panel in DRAWN for target in panel["targets"]]
    marks = [mark for mark in DASHBOARD["annotations"]["list"] if not mark.get("builtIn")]
    assert [] == [each for each in (*others, *DRAWN, *targets, *marks) if each["datasource"] != SOURCE]


def test_variables_tolerate_what_is_not_there() -> None:
    """Protects the choices at the top: each follows those before it, and "All" selects series without the label too."""
    *choices, detail = VARIABLES[1:]
    assert ["cluster", "namespace", "job", "instance", "pool"] == [variable["name"] for variable in choices]
    before: list[str] = []
    for variable in choices:
        name = variable["name"]
        assert f"label_values(sqlalchemy_pool_info{{{', '.join(before)}}}, {name})" == variable["query"]
        before.append(f'{name}=~"${name}"')
        assert variable["multi"]
        assert variable["includeAll"]
        assert (".+" if name in {"job", "instance", "pool"} else ".*") == variable["allValue"]
        assert (2, []) == (variable["refresh"], variable["options"])
    assert f"label_values(sqlalchemy_pool_info{{{', '.join(before)}}}, instance)" == detail["query"]
    assert ("detail", False, False, {}) == (detail["name"], detail["multi"], detail["includeAll"], detail["current"])


def test_panels_are_numbered_and_placed() -> None:
    """Protects the layout: Grafana moves panels that overlap and loses one of two with the same number."""
    numbers = [panel["id"] for panel in PANELS]
    assert sorted(set(numbers)) == numbers
    for panels in (DASHBOARD["panels"], *(panel["panels"] for panel in PANELS if panel.get("collapsed"))):
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert cells
            assert not cells & taken
            assert all(0 <= x < 24 for x, _ in cells)
            taken |= cells


def test_the_first_screen_is_one_screen() -> None:
    """Protects whoever was woken: no scrolling, and few enough panels; the rest asks nothing until it is opened."""
    outer = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len(outer) <= 16
    # A unit is 38 pixels high; a laptop's screen below Grafana's own bars holds this many.
    assert max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in outer) <= 22
    first_collapsed = min(panel["gridPos"]["y"] for panel in PANELS if panel.get("collapsed"))
    assert all(panel["gridPos"]["y"] < first_collapsed for panel in outer)


@pytest.mark.parametrize("panel", [panel for panel in PANELS if panel["type"] == "row"], ids=lambda row: row["title"])
def test_a_row_asks_a_question(panel: dict[str, Any]) -> None:
    """Protects the way through the dashboard: a row is opened for its question."""
    assert "?" in panel["title"]


@pytest.mark.parametrize("panel", DRAWN, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    """Protects the reader: a question behind the (i), units, one letter and a legend for each query."""
    assert panel["title"]
    assert "?" in panel["description"]
    assert panel["description"].rstrip().endswith((".", "?"))
    assert panel["fieldConfig"]["defaults"]["unit"]
    references = [target["refId"] for target in panel["targets"]]
    assert references
    assert sorted(set(references)) == references
    if panel["type"] == "timeseries":
        assert all(target["legendFormat"] not in {"", "__auto"} for target in panel["targets"])


def test_titles_are_unique() -> None:
    """Protects whoever refers to a panel by its title, as the tests with a real server and the runbook do."""
    titles = [panel["title"] for panel in PANELS]
    assert sorted(set(titles)) == sorted(titles)
    assert all(titles)


def test_a_row_has_to_fill_the_grid() -> None:
    """Protects the layout from a gap that nobody sees before it is drawn."""
    panel = Panel(kind="stat", title="t", question="q", unit="s", width=23, queries=(Query(expr="vector(1)"),))
    with pytest.raises(ValueError, match="row 'short' do not add up to 24"):
        list(layout([Row(title="short", height=3, panels=(panel,))]))


OTHERWISE = Options(
    labels=("region", "namespace"),
    server_labels=("region",),
    instance="pod",
    objective=0.99,
    slow=0.25,
    full=(0.5, 0.7),
    server_full=0.8,
    grafana="https://grafana.example",
    runbook="https://wiki.example/pools",
)


def test_labels_and_thresholds_are_arguments() -> None:
    """Protects teams whose labels or numbers are others: what they ask for stands everywhere, and nothing else does."""
    made = files(OTHERWISE)
    everything = "\n".join(made.values())
    assert not re.search(r"\bcluster\b|\$instance\b|RUNBOOK", everything)
    assert ["datasource", "region", "namespace", "job", "pod", "pool", "detail"] == [
        variable["name"] for variable in json.loads(made["sqlalchemy-pool.json"])["templating"]["list"]
    ]
    for wanted in ("> 0.144", "> 0.06", "> 0.01", "> 0.25", "sum by (region, namespace, job, pool)"):
        assert wanted in made["alerts.yml"], wanted
    assert "https://grafana.example/d/sqlalchemy-pool?var-job=" in made["alerts.yml"]
    assert "https://wiki.example/pools#sqlalchemypoolexhausted" in made["alerts.yml"]
    assert "> 0.8" in made["server.yml"]
    assert "sum by (region, server)" in made["server.yml"]
    default = files(DEFAULT)["sqlalchemy-pool.json"]
    for orange, red, text in ((0.5, 0.7, made["sqlalchemy-pool.json"]), (0.85, 0.95, default)):
        for value in (orange, red):
            assert f'"value": {value}' in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--slow", "0.3"], "which a histogram cannot tell"),
        (["--labels", "a b"], "'a b' is no label's name"),
        (["--server-labels", "region"], "labels lacks; add it there"),
        (["--full", "0.9", "0.8"], "orange has to be below"),
        (["--objective", "99.9"], "no share between 0 and 1"),
        (["--slow", "60"], "which a histogram cannot tell"),
        (["--slow", "0.25"], "name an --output directory"),
        (["--labels", "region"], "say with server_labels what does instead"),
        (["--labels", "cluster,state"], "the label 'state' is one of ours"),
        (["--labels", "cluster,pod", "--instance", "pod"], "the label 'pod' is one of ours or named twice"),
        (["--objective", "0.9"], "no share of failures uses that up"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects from rules that are silent for ever: the mistake is named, with the remedy."""
    with pytest.raises(SystemExit):
        main(arguments)
    assert complaint in capsys.readouterr().err


def test_the_command_writes_what_was_asked_for(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the command line: every file lands in the directory, made with the options given."""
    assert 0 == main(
        [
            "--output",
            str(tmp_path),
            "--labels",
            "",
            "--server-labels",
            "",
            "--instance",
            "pod",
            "--recorded",
            "--slow",
            "0.25",
        ]
    )
    options = Options(labels=(), server_labels=(), instance="pod", recorded=True, slow=0.25)
    assert files(options) == {name: (tmp_path / name).read_text(encoding="utf-8") for name in files(options)}
    assert build(options) == json.loads((tmp_path / "sqlalchemy-pool.json").read_text(encoding="utf-8"))
    assert "wrote" in capsys.readouterr().out
    assert HERE.is_dir()
