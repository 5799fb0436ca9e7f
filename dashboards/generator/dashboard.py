"""The dashboard around its panels: variables, time range, and what an import needs."""

from collections.abc import Sequence
from typing import Any

from generator.model import DATASOURCE, KINDS, Json, Row, layout
from generator.options import UID, Options
from generator.promql import Promql, name
from generator.rows import (
    checkouts,
    configuration,
    connections,
    details,
    fleet,
    fullness,
    lifetime,
    losses,
    now,
    processes,
    routes,
    timeouts,
)

ROWS = (
    now,
    checkouts,
    fullness,
    timeouts,
    losses,
    lifetime,
    routes,
    details,
    fleet,
    configuration,
    processes,
    connections,
)
# Every scrape sets these; `.*` for others also selects series without the label.
ALWAYS = ("job", "instance", "pool")


def _variable(label: str, chosen: Sequence[str], **properties: object) -> Json:
    query = f"label_values({name('info')}{{{', '.join(chosen)}}}, {label})"
    return {
        "name": label,
        "label": label.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": query,
        "definition": query,
        "options": [],
        "regex": "",
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        **properties,
    }


def _variables(q: Promql) -> list[Json]:
    variables: list[Json] = [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "current": {},
            "options": [],
            "regex": "",
            "refresh": 1,
            "hide": 0,
            "multi": False,
            "includeAll": False,
        }
    ]
    variables += [
        _variable(
            label,
            q.chosen[:place],
            current={"selected": True, "text": ["All"], "value": ["$__all"]},
            multi=True,
            includeAll=True,
            allValue=".+" if label in ALWAYS else ".*",
        )
        for place, label in enumerate(q.variables)
    ]
    detail = _variable(q.options.instance, q.chosen, current={}, multi=False, includeAll=False)
    return [*variables, detail | {"name": "detail", "label": "Process in the last row"}]


def _annotations(q: Promql) -> Json:
    built_in = {
        "builtIn": 1,
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": True,
        "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)",
        "name": "Annotations & Alerts",
        "type": "dashboard",
    }
    # New processes are new series where every process has an address of its own.
    new = f"count by ({q.pool}) ({q.of('info')} unless on ({q.process}) {q.of('info')} offset 2m) > 0"
    started = {
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "blue",
        "name": "New processes",
        "expr": new,
        "step": "60s",
        "titleFormat": "New processes",
        "textFormat": "{{job}}/{{pool}}",
        "tagKeys": "",
        "useValueForTime": False,
    }
    return {"list": [built_in, started]}


def _requires(rows: tuple[Row, ...]) -> list[Json]:
    used = sorted({panel.kind for row in rows for panel in row.panels})
    panels: list[Json] = [{"type": "panel", "id": kind, "name": KINDS[kind], "version": ""} for kind in used]
    return [
        {"type": "grafana", "id": "grafana", "name": "Grafana", "version": "10.4.0"},
        {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
        *panels,
    ]


def _without_process(panel: Json, q: Promql) -> None:
    """Say so where the choice of a process changes nothing, as recorded series know none."""
    targets: Any = panel.get("targets", [])
    if targets and not any(f"{q.options.instance}=~" in target["expr"] for target in targets):
        panel["description"] = f"{panel['description']} Of all processes: the choice of one does not apply here."


def build(options: Options) -> Json:
    """Return the dashboard, ready to be written as JSON."""
    q = Promql(options)
    rows = tuple(module.row(q) for module in ROWS)
    panels = list(layout(rows))
    if options.recorded:
        for outer in panels:
            inner: Any = outer.get("panels", [])
            for panel in (outer, *inner):
                _without_process(panel, q)
    return {
        "__inputs": [],
        "__elements": {},
        "__requires": _requires(rows),
        "id": None,
        "uid": UID,
        "title": "SQLAlchemy connection pools",
        "description": (
            "Who fails for want of a connection, how full the pools are and which routes have them, which connections"
            " the server will close next and whether anything protects them; below, why connections were lost and"
            " replaced, whether the fleet fits into the database, settings, odd processes, each connection."
        ),
        "tags": ["sqlalchemy", "connection-pool", "generated"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "fiscalYearStartMonth": 0,
        "weekStart": "",
        "liveNow": False,
        "links": [],
        "annotations": _annotations(q),
        "templating": {"list": _variables(q)},
        "panels": panels,
    }
