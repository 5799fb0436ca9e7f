"""Grafana's classic dashboard format, as far as it is needed: typed parts in, dictionaries out.

Classic JSON (schemaVersion 39) and not the newer resource formats, since every Grafana from 10.4
imports it by upload, by file provisioning and by its API.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, TypeAlias

Json: TypeAlias = dict[str, object]
Steps: TypeAlias = tuple[tuple[float | None, str], ...]

# A variable and not `${DS_...}` from `__inputs`, which only the import dialogue replaces: a file
# that is provisioned would keep it.
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
KINDS = {"stat": "Stat", "table": "Table", "timeseries": "Time series"}
COLUMNS = 24

NO_STEPS: Steps = ((None, "text"),)
PLAIN: Json = {"mode": "none", "group": "A"}
LINE: Json = {
    "drawStyle": "line",
    "lineWidth": 1,
    "fillOpacity": 0,
    "showPoints": "auto",
    "pointSize": 4,
    "spanNulls": False,
    "stacking": PLAIN,
    "scaleDistribution": {"type": "linear"},
    "thresholdsStyle": {"mode": "off"},
    "axisSoftMin": 0,
}
STACK: Json = {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 60, "lineWidth": 0}
BARS: Json = STACK | {"drawStyle": "bars", "fillOpacity": 80, "axisSoftMax": 1}
LOGARITHMIC: Json = {"scaleDistribution": {"type": "log", "log": 10}}
SHADED: Json = {"thresholdsStyle": {"mode": "area"}}

OPTIONS: dict[str, Json] = {
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "value",
        "justifyMode": "auto",
        "orientation": "vertical",
    },
    "table": {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}},
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
}

# For panels with more lines than fit under a low graph.
LEGEND_BESIDE: Json = {
    "legend": {"displayMode": "list", "placement": "right", "showLegend": True, "calcs": []},
}

TABLE: Json = {"align": "auto", "minWidth": 55, "cellOptions": {"type": "auto"}, "filterable": False}
CUSTOM: dict[str, Json] = {"stat": {}, "table": TABLE, "timeseries": LINE}
COLOURED: Json = {"type": "color-text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query of a panel. An *instant* one asks for now only, not for the whole time range."""

    expr: str
    legend: str = "__auto"
    instant: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel.

    *question* becomes the description behind the panel's (i). *steps* are the thresholds, the first
    one without a value. *defaults*, *custom* and *options* are added to what its kind starts from.
    """

    kind: Literal["stat", "table", "timeseries"]
    title: str
    question: str
    unit: str
    width: int
    queries: tuple[Query, ...]
    steps: Steps = NO_STEPS
    defaults: Json = field(default_factory=dict)
    custom: Json = field(default_factory=dict)
    options: Json = field(default_factory=dict)
    overrides: tuple[Json, ...] = ()
    transformations: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels side by side, under a *title* unless it is empty; a *collapsed* row asks nothing until it is opened."""

    title: str
    height: int
    panels: tuple[Panel, ...]
    collapsed: bool = False


def thresholds(steps: Steps) -> Json:
    """Return the field option for *steps*."""
    return {
        "mode": "absolute",
        "steps": [{"value": value, "color": colour} for value, colour in steps],
    }


def override(field_name: str, **properties: object) -> Json:
    """Return an override for the field of that name, or for all that match it if it reads `/.../`.

    A double underscore in a property's name stands for the dot: `custom__width`.
    """
    matcher = "byRegexp" if field_name.startswith("/") else "byName"
    values = [{"id": key.replace("__", "."), "value": value} for key, value in properties.items()]
    return {"matcher": {"id": matcher, "options": field_name}, "properties": values}


def fixed(field_name: str, colour: str, **properties: object) -> Json:
    """Return an override that gives the fields one *colour* whatever their value."""
    return override(field_name, color={"mode": "fixed", "fixedColor": colour}, **properties)


def dashed(field_name: str, **properties: object) -> Json:
    """Return an override for limits and settings: a dashed line, neither stacked nor filled."""
    return override(
        field_name,
        custom__drawStyle="line",
        custom__lineWidth=1,
        custom__lineStyle={"fill": "dash", "dash": [8, 6]},
        custom__fillOpacity=0,
        custom__stacking=PLAIN,
        **properties,
    )


def columns(names: dict[str, str], *hidden: str) -> tuple[Json, ...]:
    """Return what makes one table of several queries: the fields of *names*, in that order and under those names."""
    organised: Json = {
        "excludeByName": dict.fromkeys(("Time", *hidden), True),
        "indexByName": {column: i for i, column in enumerate(names)},
        "renameByName": names,
    }
    return ({"id": "merge", "options": {}}, {"id": "organize", "options": organised})


# Kept in the graph, where a line at 0 shows that the exporter lives, but not in the legend.
ZEROS_OUT_OF_LEGEND: Json = {
    "matcher": {"id": "byValue", "options": {"reducer": "allIsZero", "op": "gte", "value": 0}},
    "properties": [{"id": "custom.hideFrom", "value": {"legend": True, "tooltip": True, "viz": False}}],
}


def _target(query: Query, number: int, kind: str) -> Json:
    return {
        "refId": chr(ord("A") + number),
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "instant": query.instant,
        "range": not query.instant,
        "format": "table" if kind == "table" else "time_series",
    }


def _panel(panel: Panel, number: int, position: Json) -> Json:
    mode = "palette-classic" if panel.kind == "timeseries" else "thresholds"
    custom = CUSTOM[panel.kind] | panel.custom
    defaults = {
        "unit": panel.unit,
        "mappings": [],
        "thresholds": thresholds(panel.steps),
        "color": {"mode": mode},
        "custom": custom,
    } | panel.defaults
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.question,
        "datasource": DATASOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": defaults, "overrides": list(panel.overrides)},
        "options": OPTIONS[panel.kind] | panel.options,
        "targets": [_target(query, i, panel.kind) for i, query in enumerate(panel.queries)],
        "transformations": list(panel.transformations),
    }


def layout(rows: Sequence[Row]) -> Iterator[Json]:
    """Yield the panels of *rows* from the top, numbered from 1 and placed on Grafana's grid.

    Those of a collapsed row are inside it, placed where they are once it is opened.
    Raises ValueError when the panels of a row are not as wide as the grid.
    """
    numbers = count(1)
    y = 0
    for row in rows:
        if sum(panel.width for panel in row.panels) != COLUMNS:
            msg = f"the panels of row {row.title!r} do not add up to {COLUMNS} columns"
            raise ValueError(msg)
        number = next(numbers) if row.title else 0
        top = y + bool(row.title)
        panels, x = [], 0
        for panel in row.panels:
            panels.append(_panel(panel, next(numbers), {"h": row.height, "w": panel.width, "x": x, "y": top}))
            x += panel.width
        if row.title:
            yield {
                "id": number,
                "type": "row",
                "title": row.title,
                "collapsed": row.collapsed,
                "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
                "panels": panels if row.collapsed else [],
            }
        if not row.collapsed:
            yield from panels
        y = top + (0 if row.collapsed else row.height)
