"""The dashboard's queries, the declaration of which test asks which, and what tests compare with."""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from generator.rules.model import Record
from poolwatch.demo.servers import find

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

    from generator.rules.model import Group, Rule
    from panels_stage import Stage
    from poolwatch.histogram import HistogramSnapshot

DASHBOARDS = Path(__file__).resolve().parent.parent / "dashboards"
DASHBOARD: dict[str, Any] = json.loads((DASHBOARDS / "sqlalchemy-pool.json").read_text(encoding="utf-8"))


def panels_of(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all panels of *dashboard*, rows too; those of collapsed rows lie inside these."""
    return [panel for outer in dashboard["panels"] for panel in (outer, *outer.get("panels", ()))]


PANELS = panels_of(DASHBOARD)
# By the panel's title and the query's letter: "Connection age A".
TARGETS: dict[str, dict[str, Any]] = {
    f"{panel['title']} {target['refId']}": target for panel in PANELS for target in panel.get("targets", ())
}


# Their alerts ask for a day, or for hours.
LONG_WINDED = {
    "SQLAlchemyPoolErrorBudgetBurn",
    "SQLAlchemyPoolHiddenLimit",
    "SQLAlchemyPoolConfigProblem",
    "SQLAlchemyPoolFleetOverServer",
}

# The two clocks are read one after the other, and Prometheus keeps milliseconds.
CLOCKS = 0.05


class Span(NamedTuple):
    """Two Unix times between which something happened."""

    begin: float
    end: float

    def after(self, seconds: float) -> Span:
        """Return the span that much later."""
        return Span(self.begin + seconds, self.end + seconds)

    def holds(self, moment: float) -> bool:
        """Tell whether *moment* lies in it, as exactly as clocks allow."""
        return self.begin - CLOCKS <= moment <= self.end + CLOCKS


def shows(*panels: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare which queries, ``"title letter"``, a test asks; it has to ask exactly these."""

    def declare(test: Callable[..., None]) -> Callable[..., None]:
        @wraps(test)
        def checked(stage: Stage, **others: object) -> None:
            stage.asked.clear()
            test(stage=stage, **others)
            assert set(panels) == stage.asked

        checked.__dict__["shown"] = set(panels)
        return checked

    return declare


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Prometheus's own checker; a machine without it fails."""
    command = [find("promtool", "prometheus"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def declared(module: ModuleType) -> set[str]:
    """Return the queries that the tests of *module* declare."""
    return {panel for each in vars(module).values() for panel in getattr(each, "shown", ())}


def hurried(groups: Sequence[Group]) -> list[Group]:
    """Return *groups* with alerts for which an hour passes in a minute, or in six seconds where they ask for days."""
    milliseconds = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

    def hurry(rule: Rule) -> Rule:
        if isinstance(rule, Record):
            return rule
        times = 600 if rule.title in LONG_WINDED else 60

        def sooner(text: str) -> str:
            return re.sub(r"\b(\d+)([smhd])\b", lambda x: f"{int(x[1]) * milliseconds[x[2]] // times}ms", text)

        return replace(rule, expr=sooner(rule.expr), lasting=sooner(rule.lasting))

    return [replace(group, rules=tuple(map(hurry, group.rules)), interval="") for group in groups]


def during(act: Callable[..., object], *arguments: object) -> Span:
    """Do it and return when that was."""
    begin = time.time()
    act(*arguments)
    return Span(begin, time.time())


def quantile(share: float, histogram: HistogramSnapshot) -> float:
    """Return the quantile of *histogram* as Prometheus defines it: linear inside a bucket."""
    rank, low, below = share * histogram.count, 0.0, 0
    for bound, cumulative in zip(histogram.bounds, histogram.cumulative, strict=True):
        if cumulative >= rank:
            return low + (bound - low) * (rank - below) / (cumulative - below)
        low, below = bound, cumulative
    return low
