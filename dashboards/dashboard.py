"""The dashboard around its panels: variables, time range, and what an import needs."""

from lifetime import LIFETIME
from losses import LOSSES
from model import DATASOURCE, KINDS, Json, Row, layout
from panels import NOW, PRESSURE
from promql import name
from timeouts import TIMEOUTS

# Never to be changed: alerts and other dashboards link to it, and an import replaces what has it.
UID = "sqlalchemy-pool"
ROWS = (NOW, PRESSURE, TIMEOUTS, LOSSES, LIFETIME)
# Every scrape sets job and instance. `.*` for the others also selects series without the label.
ALL_VALUES = {"cluster": ".*", "namespace": ".*", "job": ".+", "instance": ".+", "pool": ".+"}


def _variables() -> list[Json]:
    chosen: list[str] = []
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
    for variable, every in ALL_VALUES.items():
        query = f"label_values({name('info')}{{{', '.join(chosen)}}}, {variable})"
        variables.append(
            {
                "name": variable,
                "label": variable.capitalize(),
                "type": "query",
                "datasource": DATASOURCE,
                "query": query,
                "definition": query,
                "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
                "options": [],
                "regex": "",
                "refresh": 2,
                "sort": 1,
                "hide": 0,
                "multi": True,
                "includeAll": True,
                "allValue": every,
            }
        )
        chosen.append(f'{variable}=~"${variable}"')
    return variables


def _requires(rows: tuple[Row, ...]) -> list[Json]:
    used = sorted({panel.kind for row in rows for panel in row.panels})
    panels: list[Json] = [{"type": "panel", "id": kind, "name": KINDS[kind], "version": ""} for kind in used]
    return [
        {"type": "grafana", "id": "grafana", "name": "Grafana", "version": "10.4.0"},
        {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
        *panels,
    ]


def build() -> Json:
    """Return the dashboard, ready to be written as JSON."""
    built_in = {
        "builtIn": 1,
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": True,
        "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)",
        "name": "Annotations & Alerts",
        "type": "dashboard",
    }
    return {
        "__inputs": [],
        "__elements": {},
        "__requires": _requires(ROWS),
        "id": None,
        "uid": UID,
        "title": "SQLAlchemy connection pools",
        "description": (
            "Who waits for a connection, how full the pools are, which connections the server will"
            " close next and whether anything protects them, which were lost, why, and who noticed,"
            " how old connections get and why they are replaced."
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
        "annotations": {"list": [built_in]},
        "templating": {"list": _variables()},
        "panels": list(layout(ROWS)),
    }
